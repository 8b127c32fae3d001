"""The device of the host that a container has: taken, looked for, brought home."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.netns import NETLINK_ROUTE, is_unique
from cni_common.kernel.rtnetlink import RTMGRP_LINK
from cni_common.node import interface, veth
from cni_common.node.lifecycle import Lifecycle, Part, attached_already
from cni_common.node.record import Lock
from cni_common.spec.errors import CNIError, Code
from plugins.host_device import link as links
from plugins.host_device import settings, sysfs
from plugins.host_device.facts import MovedFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching, Unrecorded
    from cni_common.node.owned import Owned
    from cni_common.node.record import Record
    from cni_common.spec.request import Request
    from plugins.host_device.link import Device

PLUGIN = "host-device"
# How long the kernel may take to give back the hardware of a namespace that has ended: it ends
# namespaces one after the other, in a work item.
_RETURN_SECONDS = 10.0


class Moved(Part):
    """The device, which no other container has meanwhile."""

    facts = MovedFacts
    has_addresses = True

    def take(
        self,
        attaching: Attaching,
        host: Host,
        container: NetNS,
        *,
        find: Callable[[], Device],
        pci: str,
    ) -> Device:
        """Move the device that `find` returns into the container, where it is down; return it.

        The device is noted before, and brought home if the ADD fails. Of two ADDs at once the
        second one finds the device gone. Raises CNIError, NetlinkError.
        """
        ifname = attaching.record.attachment.ifname
        with Lock(host.records):
            device = find()
            _refuse_returned(host, device)
            facts = replace(_facts_of(host, device), pci=pci)
            attaching.note(facts)
            attaching.take_back(self)
            links.move(host.netns, device.link, container, ifname, alias=facts.name)
        there = links.named(container, ifname)
        if there is None:
            raise CNIError(
                Code.INTERNAL, f"'{ifname}' vanished from '{container.path}' while it was set up"
            )
        attaching.note(replace(facts, index=there.link.index))
        return there

    def reserve(self, attaching: Attaching, host: Host, pci: str) -> None:
        """Note a device without an interface. CNIError 11 if a container may have it."""
        with Lock(host.records):
            _refuse_reserved(host, attaching.record, pci)
            attaching.note(MovedFacts(pci=pci))

    def teardown(self, req: Request, host: Host, record: Record, facts: MovedFacts) -> None:
        """Bring the device home, with everything that it had, wherever it is by now.

        Where the container's namespace has ended, the kernel has destroyed a virtual device; it
        moves hardware to the host, under the name that it had or as devN.
        """
        if facts.home or not facts.name:
            return
        with _container(req, host, record) as container:
            if container is None:
                _await_return(host, facts)
            with Lock(host.records):
                device = _bring_home(host, container, record, facts)
                if device is None:
                    if facts.index:
                        host.log(f"'{facts.name}' is gone: neither in the container nor at home")
                    return
                try:
                    _restore_settings(host, device, facts)
                except NetlinkError:
                    _put(record, replace(facts, failed=True))
                    raise
                _put(record, replace(facts, home=True))

    def teardown_unrecorded(self, req: Request, host: Host, found: Unrecorded) -> None:
        """Bring home what the reference has moved: its alias is its name on the host."""
        container = host.find_netns(req.netns)
        if container is None:
            return
        try:
            # Its own name is what a DEL has given it that could not move it.
            device = links.named(container, req.ifname) or next(
                (one for one in links.all_of(container) if one.alias == one.link.name), None
            )
        except OSError:
            found.exists = req.ifname in container.interfaces()
            raise
        if device is None or not _is_wanted(req, device):
            return
        other = _record_of(host, container, device)
        if other:
            what = f"it is of container {other.attachment.containerid} on '{other.network}'"
            host.log(f"DEL leaves '{req.ifname}' alone: {what}")
            return
        found.exists = True
        with Lock(host.records):
            name = links.bring_home(
                container, device.link, host.netns, device.alias, alias=device.alias
            )
            _log_other_name(host, device.alias, name)
            home = links.named(host.netns, name)
            if home:
                links.set_alias(host.netns, home.link.index, "")

    def refuse_living(self, req: Request, host: Host, record: Record, facts: MovedFacts) -> None:
        """Raise CNIError 4 when the device is in the container."""
        if facts.home or not facts.name:
            return
        from cni_common.node.owned import recorded_netns

        with recorded_netns(record) as container:
            inside = container and _find_inside(container, record, facts)
        if inside:
            raise attached_already(req, record)

    def present(self, host: Host, record: Record, facts: MovedFacts) -> Iterator[Owned]:
        """Yield the device, and its MAC."""
        from cni_common.node.owned import Owned, recorded_netns

        if not facts.name:
            if facts.pci:
                what = f"PCI device '{facts.pci}', without an interface"
                yield Owned(self.name, what, sysfs.is_there(f"pci {facts.pci}"))
            return
        ifname = record.attachment.ifname
        with recorded_netns(record) as container:
            inside = _find_inside(container, record, facts) if container else None
        what = f"'{facts.name}' of the host, '{ifname}' in the container"
        yield Owned(self.name, what, inside is not None)
        there = inside is not None and inside.link.mac == facts.mac
        yield Owned("mac", f"{facts.mac} of '{ifname}'", there, setting=f"mac of {ifname}")

    def devices(self, facts: MovedFacts) -> Iterator[str]:
        """Yield the device's name on the host."""
        if facts.name:
            yield facts.name


MOVED = Moved()
LIFECYCLE = Lifecycle(PLUGIN, MOVED, interface.CONFIGURATION, interface.IPAM)


def holder(host: Host, is_it: Callable[[MovedFacts], bool]) -> str:
    """Return the container that has a device which is not at home, "" if no record tells."""
    for record in host.records.of_plugin(PLUGIN):
        facts = record.get(MovedFacts)
        if facts and facts.name and not facts.home and is_it(facts):
            return f"{record.attachment.containerid} on '{record.network}'"
    return ""


def _facts_of(host: Host, device: Device) -> MovedFacts:
    """Return what there is to know about a device that is at home."""
    link, netns = device.link, host.netns
    master = netns.netlink.link_at(link.master) if link.master else None
    routes = settings.read_routes(netns, link.index)
    return MovedFacts(
        name=link.name,
        kind=link.kind,
        parent=device.parent,
        permanent_mac=device.permanent_mac,
        home_index=link.index,
        alias=device.alias,
        mac=link.mac,
        mtu=link.mtu,
        tx_queue=link.tx_queue,
        flags=link.flags & settings.FLAGS,
        master=master.name if master else "",
        addresses=settings.read_addresses(netns, link.index),
        routes=settings.routes_to_keep(routes, host.log),
    )


def _refuse_returned(host: Host, device: Device) -> None:
    """Raise CNIError 11 if the kernel has sent the device back, and its DEL is still to come."""
    if not (device.alias or device.parent):
        return
    container = holder(host, lambda facts: _has_returned(device, facts))
    if container:
        raise CNIError(
            Code.TRY_AGAIN_LATER,
            f"'{device.link.name}' is the device of container {container}, whose namespace has"
            " ended: its DEL, GC or 'pycni reclaim' brings the device home first",
        )


def _refuse_reserved(host: Host, ours: Record, pci: str) -> None:
    """Raise CNIError 11 if the record of a container that may be alive has the PCI device."""
    from cni_common.node.liveness import Liveness, State

    liveness = Liveness(host)
    for record in host.records.of_plugin(PLUGIN):
        facts = record.get(MovedFacts)
        if not (facts and pci and facts.pci == pci) or record.path == ours.path:
            continue
        if liveness.state_of(record.facts) is not State.GONE:
            owner = f"{record.attachment.containerid} on '{record.network}'"
            raise CNIError(Code.TRY_AGAIN_LATER, f"container {owner} has the PCI device '{pci}'")


def _put(record: Record, facts: MovedFacts) -> None:
    """Note `facts` if that can be done: without them the next call does the same once more."""
    try:
        record.put(facts)
    except OSError:
        return


def _container(req: Request, host: Host, record: Record) -> AbstractContextManager[NetNS | None]:
    """Return the namespace in which the device should be; None if it has ended."""
    from contextlib import nullcontext

    if req.netns and host.identity_of(req.netns) == record.facts.get("netns_id"):
        return nullcontext(host.open_netns(req.netns))
    from cni_common.node.owned import recorded_netns

    return recorded_netns(record)


def _find_inside(container: NetNS, record: Record, facts: MovedFacts) -> Device | None:
    """Return the device: by its index, or by its names where the ADD was killed before."""
    is_sure = is_unique(str(record.facts.get("netns_id", "")))
    if facts.index:
        device = links.at(container, facts.index)
        # Before Linux 5.14 a new namespace may have the identity of one that has ended.
        if device and _is_same(device, facts, or_else=is_sure):
            return device
    for name in (record.attachment.ifname, facts.name):
        device = links.named(container, name)
        if device and _is_same(device, facts, or_else=False):
            return device
    return None


def _is_same(device: Device, facts: MovedFacts, *, or_else: bool) -> bool:
    """Tell whether a device in the container is the recorded one, which may have another MAC."""
    if device.link.kind != facts.kind or device.parent != facts.parent:
        return False
    return device.link.mac == facts.mac or device.alias == facts.name or or_else


def _has_returned(device: Device, facts: MovedFacts) -> bool:
    """Tell whether a device of the host is the recorded one, back without what it had."""
    if device.link.kind != facts.kind or device.parent != facts.parent:
        return False
    is_marked = device.alias == facts.name
    if facts.parent:
        return device.permanent_mac == facts.permanent_mac and (is_marked or facts.index > 0)
    return is_marked and (device.link.name == facts.name or device.link.mac == facts.mac)


def _returned(host: Host, facts: MovedFacts) -> Device | None:
    device = links.named(host.netns, facts.name)
    if device and _has_returned(device, facts):
        return device
    return next((one for one in links.all_of(host.netns) if _has_returned(one, facts)), None)


def _await_return(host: Host, facts: MovedFacts) -> None:
    """Wait until the kernel has moved hardware out of a namespace that has ended."""
    if not facts.index or not links.outlives_namespace(facts.kind):
        return
    if facts.parent and not sysfs.is_there(facts.parent):
        return  # it was unplugged
    events = partial(host.netns.channel, NETLINK_ROUTE, RTMGRP_LINK)
    veth.wait_until(lambda: _returned(host, facts) is not None, events, _RETURN_SECONDS)


def _bring_home(
    host: Host, container: NetNS | None, record: Record, facts: MovedFacts
) -> Device | None:
    """Return the device, on the host and under its name if that is free; None if it is gone."""
    inside = _find_inside(container, record, facts) if container else None
    if container and inside:
        name = links.bring_home(container, inside.link, host.netns, facts.name, alias=facts.name)
        _log_other_name(host, facts.name, name)
        return links.named(host.netns, name)
    device = _returned(host, facts)
    if device is None or device.link.name == facts.name:
        return device
    if device.link.up:
        host.netns.netlink.set_down(device.link.index)
    try:
        links.rename(host.netns, device.link, facts.name)
    except NetlinkError as error:
        if error.errno not in links.NOT_RENAMED:
            raise
        _log_other_name(host, facts.name, device.link.name)
    return links.at(host.netns, device.link.index)


def _restore_settings(host: Host, device: Device, facts: MovedFacts) -> None:
    """Give a device at home what it had; its alias last, which says that it was away."""
    settings.give_back(host.netns, device, facts, host.log)
    links.set_alias(host.netns, device.link.index, facts.alias)


def _log_other_name(host: Host, name: str, chosen: str) -> None:
    if chosen != name:
        host.log(f"'{name}' comes home as '{chosen}': another interface has its name")


def _is_wanted(req: Request, device: Device) -> bool:
    """Tell whether a device without a record may be the one of the configuration."""
    if not device.alias:
        return False
    wanted, mac = req.config.get("device"), str(req.config.get("hwaddr", ""))
    if wanted:
        return bool(device.alias == wanted)
    return not mac or mac.replace("-", ":").lower() == device.link.mac


def _record_of(host: Host, container: NetNS, device: Device) -> Record | None:
    """Return the record of any attachment of which the container's interface is a device."""
    for record in host.records.of_plugin(PLUGIN):
        facts = record.get(MovedFacts)
        in_it = facts and record.facts.get("netns_id") == container.identity
        if facts and in_it and facts.index == device.link.index:
            return record
    return None
