"""The part of interface plugins whose interface has no other end: it is in the container alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.node import veth
from cni_common.node.lifecycle import Part, in_container
from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching, Unrecorded
    from cni_common.node.owned import Owned
    from cni_common.node.record import Record
    from cni_common.spec.request import Request


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

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def create(
        self,
        attaching: Attaching,
        container: NetNS,
        mac: str,
        make: Callable[[], object],
    ) -> Link:
        """Have `make` create the interface with this MAC, and return it.

        It is noted before it exists, and taken back if the ADD fails. Raises what `make` raises.
        """
        name = attaching.record.attachment.ifname
        attaching.note(DeviceFacts(self._kind, mac))
        attaching.take_back(self)
        make()
        link = veth.required(container, name)
        attaching.note(DeviceFacts(self._kind, link.mac, link.index))
        return link

    def teardown(self, req: Request, host: Host, record: Record, facts: DeviceFacts) -> None:
        """Delete the interface, also when its container has given it another MAC or name."""
        in_container(req, host, record, lambda netns: _delete(host, netns, record, facts))

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
        if link is None or link.kind != self._kind:
            return
        other = _record_of(host, found.plugin, link)
        if other and other.attachment.containerid:
            # It is on another network, or the path was that of a namespace which died.
            what = f"it is of container {other.attachment.containerid} on '{other.network}'"
            host.log(f"DEL leaves '{req.ifname}' alone: {what}")
            return
        found.exists = True
        container.netlink.delete_link(link.index)

    def refuse_living(self, req: Request, host: Host, record: Record, facts: DeviceFacts) -> None:
        """Raise CNIError 4 when the interface is there."""
        from cni_common.node.owned import recorded_netns

        with recorded_netns(record) as container:
            living = container and _find(host, container, record, facts)
        if living:
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - record.age()))
            raise CNIError(
                Code.INVALID_ENVIRONMENT,
                f"container {req.containerid} is attached to '{req.network}' as {req.ifname} since"
                f" {since}, in '{record.facts.get('netns')}'; DEL it first",
            )

    def present(self, host: Host, record: Record, facts: DeviceFacts) -> Iterator[Owned]:
        """Yield the interface, and its MAC."""
        from cni_common.node.owned import Owned, recorded_netns

        ifname = record.attachment.ifname
        with recorded_netns(record) as container:
            link = _find(host, container, record, facts) if container else None
        yield Owned(self.name, f"{facts.kind} '{ifname}' in the container", link is not None)
        there = link is not None and link.mac == facts.mac
        yield Owned("mac", f"{facts.mac} of '{ifname}'", there, setting=f"mac of {ifname}")


def _delete(host: Host, container: NetNS, record: Record, facts: DeviceFacts) -> None:
    link = _find(host, container, record, facts)
    if link:
        container.netlink.delete_link(link.index)


def _find(host: Host, container: NetNS, record: Record, facts: DeviceFacts) -> Link | None:
    """Return the interface: by its index, or by name and MAC if the ADD was killed before."""
    by_index = container.netlink.link_at(facts.index) if facts.index else None
    for link in (by_index, container.netlink.link(record.attachment.ifname)):
        if link is None or link.kind != facts.kind:
            continue
        if link.mac == facts.mac or (
            # A kernel before 5.14 may give the identity of a namespace that is gone to a new one.
            link is by_index and _record_of(host, record.plugin, link) is None
        ):
            return link
    return None


def _record_of(host: Host, plugin: str, link: Link) -> Record | None:
    """Return the plugin's record of an interface with this MAC, only to be read."""
    return next(
        (
            record
            for record in host.records.of_plugin(plugin)
            if (facts := record.get(DeviceFacts)) and facts.mac == link.mac
        ),
        None,
    )
