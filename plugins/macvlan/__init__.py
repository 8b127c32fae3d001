"""macvlan: an interface of the container's own, with its own MAC, on an interface of the host."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.node import device, interface, master, veth
from cni_common.node.device import Device
from cni_common.node.lifecycle import Lifecycle
from cni_common.spec.errors import CNIError, Code, drifted
from cni_common.spec.request import Command
from cni_common.spec.result import Interface, Result
from plugins.macvlan import link as macvlan
from plugins.macvlan.conf import PASSTHRU, SCHEMA, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]

_DEVICE = Device(macvlan.KIND)
LIFECYCLE = Lifecycle("macvlan", _DEVICE, interface.CONFIGURATION, interface.IPAM)


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Make an interface on the master, with addresses where there is an IPAM plugin."""
    conf = Conf.of(req)
    if conf.ipam:
        host.is_ours(conf.ipam, req.path)  # raises when there is no such plugin, before any act
    container = host.open_netns(req.netns)
    veth.refuse_existing(container, req.ifname)
    below = container if conf.in_container else host.netns
    parent = master.find(below, conf.master)
    _refuse_unfit(conf, parent)
    facts = [interface.IpamFacts(conf.ipam)] if conf.ipam else []
    attaching = LIFECYCLE.begin(req, host, undo, *facts)
    ours = _create(attaching, container, below, conf, parent=parent)
    if not conf.ipam:
        container.netlink.set_up(ours.index)
        return Result([Interface(ours.name, ours.mac, ours.mtu, req.netns)])
    result = device.allocate(req, host, attaching, ours, ipam=conf.ipam, dns=conf.dns)
    device.configure(attaching, container, ours, result, has_neighbours=True)
    return result


def delete(req: Request, host: Host) -> None:
    """Detach: from the record of what ADD made, else by what is found in the container."""
    LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each difference from the result of ADD."""
    conf = Conf.of(req)
    link = yield from _DEVICE.check(req, host, conf.ipam)
    if link:
        yield from _check_link(host, host.open_netns(req.netns), conf, link)


def gc(req: Request, host: Host) -> None:
    """Remove what belongs to no valid attachment of this network, then let IPAM do the same."""
    LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work now.

    7: the configuration; 50: no master, state, IPAM; 51: the master passes no packets.
    """
    conf = Conf.of(replace(req, environ={}))  # CNI_ARGS belong to an attachment
    if not conf.in_container:  # which of the containers it would be, STATUS does not say
        parent = master.find(host.netns, conf.master)
        _refuse_unfit(conf, parent)
        master.refuse_down(parent)
    host.records.probe()
    if conf.ipam:
        host.delegate(conf.ipam, req, Command.STATUS)


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


def _refuse_unfit(conf: Conf, parent: Link) -> None:
    """Raise CNIError 7 if no interface as configured can be made on the master `parent`."""
    master.refuse_mtu(conf.mtu, parent)
    if conf.mode == PASSTHRU and conf.mac not in ("", parent.mac):
        raise CNIError(
            Code.INVALID_CONFIG,
            f"in mode passthru the container's interface has the MAC of master '{parent.name}',"
            f" {parent.mac}: {conf.mac} cannot be set",
        )


def _create(
    attaching: Attaching, container: NetNS, below: NetNS, conf: Conf, *, parent: Link
) -> Link:
    """Make the interface, down, under its name in the container's namespace by one message."""
    mac = parent.mac if conf.mode == PASSTHRU else conf.mac or veth.random_mac()
    netns = -1 if conf.in_container else container.fd
    end = VethEnd(attaching.record.attachment.ifname, mac, conf.mtu, netns)
    return _DEVICE.create(
        attaching, container, mac, lambda: macvlan.create(below, parent, end, conf)
    )


def _check_link(host: Host, container: NetNS, conf: Conf, ours: Link) -> Iterator[CNIError]:
    """Yield an error if the interface has another master, and for each other setting."""
    if conf.master:  # a default route may have moved since, which no ADD undoes
        below = container if conf.in_container else host.netns
        yield from master.check(below, container, conf.master, ours)
    mode, queue = macvlan.settings(container, ours.index)
    if mode != conf.mode:
        yield drifted(f"mode of '{ours.name}' is {mode}, the configuration has {conf.mode}")
    if queue and conf.broadcast_queue and queue != conf.broadcast_queue:
        yield drifted(f"bcqueuelen of '{ours.name}' is {queue}, not {conf.broadcast_queue}")
