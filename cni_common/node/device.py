"""The part of interface plugins whose interface has no other end: it is in the container alone."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.netns import is_unique
from cni_common.node import interface, veth
from cni_common.node.lifecycle import Part, attached_already, in_container
from cni_common.spec.errors import CNIError, Code, drifted
from cni_common.spec.ipam_config import has_advertised_routes
from cni_common.spec.result import Interface

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching, Unrecorded
    from cni_common.node.owned import Owned
    from cni_common.node.record import Record
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.wire import Json


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """An interface that is in the container's namespace alone."""

    PART = "device"
    kind: str = ""  # as `ip -d link` has it, such as "macvlan"
    mac: str = ""
    index: int = 0  # in the container's namespace, 0: not made yet


class Device(Part):
    """An interface of one kind, under the attachment's name."""

    facts = DeviceFacts
    has_addresses = True

    def __init__(self, kind: str, *, module: str = "", own_mac: bool = True) -> None:
        """`module` is the kernel's, by default of the kind's name.

        Without `own_mac` all interfaces on one master have its MAC, so none is known by that.
        """
        self.kind = kind
        self._module = module or kind
        self._own_mac = own_mac

    def create(
        self,
        attaching: Attaching,
        container: NetNS,
        mac: str,
        make: Callable[[], object],
    ) -> Link:
        """Have `make` create the interface, which has this MAC then, and return it.

        The interface is noted before it exists, and taken back if the ADD fails. Raises what `make`
        raises, and CNIError 50 if the kernel lacks the kind.
        """
        name = attaching.record.attachment.ifname
        attaching.note(DeviceFacts(self.kind, mac))
        attaching.take_back(self)
        try:
            make()
        except NetlinkError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise CNIError(
                Code.PLUGIN_NOT_AVAILABLE,
                f"the kernel has no interfaces of the kind {self.kind}: load the module"
                f" '{self._module}'",
            ) from None
        link = veth.required(container, name)
        attaching.note(DeviceFacts(self.kind, link.mac, link.index))
        return link

    def adopt(self, attaching: Attaching, link: Link) -> None:
        """Note an interface that would have gone by itself, and have it go if the ADD fails."""
        attaching.note(DeviceFacts(self.kind, link.mac, link.index))
        attaching.take_back(self)

    def check(self, req: Request, host: Host, ipam: str) -> Generator[CNIError, None, Link | None]:
        """Yield each difference from the result of ADD, of the IPAM plugin `ipam`, too ("": none).

        Returns the interface, None if it is missing or of another kind.
        """
        if ipam:
            yield from interface.check_ipam(req, host, ipam)
        expected = req.require_prev_result()
        # Other plugins of the chain may have added addresses of other interfaces.
        expected = replace(expected, ips=veth.ips_of(expected, req.ifname))
        container = host.open_netns(req.netns)
        link = container.netlink.link(req.ifname)
        if link is None:
            yield drifted(f"interface '{req.ifname}' is missing in '{req.netns}'")
            return None
        if link.kind != self.kind:
            yield drifted(f"'{link.name}' is no {self.kind} but '{link.kind}'")
            return None
        yield from veth.check(container, link, expected)
        return link

    def teardown(self, req: Request, host: Host, record: Record, facts: DeviceFacts) -> None:
        """Delete the interface, also when its container has given it another MAC or name."""
        in_container(req, host, record, lambda netns: self._delete(host, netns, record, facts))

    def teardown_unrecorded(self, req: Request, host: Host, found: Unrecorded) -> None:
        """Delete the container's interface if it is of this kind, and no record names it."""
        container = host.find_netns(req.netns)
        if container is None:
            return
        try:
            link = container.netlink.link(req.ifname)
        except OSError:
            found.exists = req.ifname in container.interfaces()
            raise
        if link is None or link.kind != self.kind:
            return
        other = self._record_of(host, found.plugin, container, link)
        if other and other.attachment.containerid:
            # The interface is on another network, or the path was that of a namespace which died.
            what = f"it is of container {other.attachment.containerid} on '{other.network}'"
            host.log(f"DEL leaves '{req.ifname}' alone: {what}")
            return
        found.exists = True
        host.delete_link_at(container, link.index)

    def refuse_living(self, req: Request, host: Host, record: Record, facts: DeviceFacts) -> None:
        """Raise CNIError 4 when the interface is there."""
        from cni_common.node.owned import recorded_netns

        with recorded_netns(record) as container:
            living = container and self._find(host, container, record, facts)
        if living:
            raise attached_already(req, record)

    def present(self, host: Host, record: Record, facts: DeviceFacts) -> Iterator[Owned]:
        """Yield the interface, and its MAC."""
        from cni_common.node.owned import Owned, recorded_netns

        ifname = record.attachment.ifname
        with recorded_netns(record) as container:
            link = self._find(host, container, record, facts) if container else None
        yield Owned(self.name, f"{facts.kind} '{ifname}' in the container", link is not None)
        there = link is not None and link.mac == facts.mac
        yield Owned("mac", f"{facts.mac} of '{ifname}'", there, setting=f"mac of {ifname}")

    def _delete(self, host: Host, container: NetNS, record: Record, facts: DeviceFacts) -> None:
        link = self._find(host, container, record, facts)
        if link:
            host.delete_link_at(container, link.index)

    def _find(
        self, host: Host, container: NetNS, record: Record, facts: DeviceFacts
    ) -> Link | None:
        """Return the interface: by its index, or by name and MAC if the ADD was killed before."""
        link = container.netlink.link_at(facts.index) if facts.index else None
        if link and link.kind == facts.kind and self._is_at_index(host, container, record, link):
            return link
        if facts.index and not self._own_mac:
            return None  # another one may have that name by now, and the same MAC
        link = container.netlink.link(record.attachment.ifname)
        return link if link and (link.kind, link.mac) == (facts.kind, facts.mac) else None

    def _is_at_index(self, host: Host, container: NetNS, record: Record, link: Link) -> bool:
        """Tell whether `link`, which has the recorded index, is the recorded interface."""
        if is_unique(container.identity):
            return True
        # The namespace may be a new one with the identity of one that is gone.
        other = self._record_of(host, record.plugin, container, link)
        return other is None or other.path == record.path

    def _record_of(self, host: Host, plugin: str, container: NetNS, link: Link) -> Record | None:
        """Return the plugin's record of an interface, only to be read."""

        def names(record: Record) -> bool:
            facts = record.get(DeviceFacts)
            if facts is None or self._own_mac:
                return facts is not None and facts.mac == link.mac
            if record.facts.get("netns_id") != container.identity:
                return False
            by_name = not facts.index and record.attachment.ifname == link.name
            return by_name or facts.index == link.index

        return next(filter(names, host.records.of_plugin(plugin)), None)


def allocate(
    req: Request, host: Host, attaching: Attaching, ours: Link, *, ipam: str, dns: Json | None
) -> Result:
    """Return the interface `ours` with what the IPAM plugin gives, and `dns` instead of its own.

    Raises CNIError, as `interface.allocate` does.
    """
    result = interface.allocate(req, host, ipam, attaching, mtu=ours.mtu)
    result.interfaces = [Interface(ours.name, ours.mac, ours.mtu, req.netns)]
    for ip in result.ips:
        ip.interface = 0
    if dns is not None:
        result.dns = dns
    return result


def configure(
    attaching: Attaching, container: NetNS, ours: Link, result: Result, *, has_neighbours: bool
) -> None:
    """Give the interface the addresses and routes of `result`, noted before, and set it up.

    `has_neighbours`: any machine of the link may have the same address, so duplicates are looked
    for, and its routers may advertise IPv6 where `result` has none. Raises CNIError, NetlinkError.
    """
    interface.note_configuration(attaching, ours.name, ours.mtu, result)
    veth.configure(
        container,
        ours.name,
        ours.index,
        result,
        dad=has_neighbours,
        routers=has_neighbours,
        advertised=has_neighbours and has_advertised_routes(attaching.config),
    )
