"""The part of an attachment: the interface's place in a VRF, and the VRF."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel.netns import NETLINK_ROUTE
from cni_common.kernel.policy_routing import WholeRoute, whole_routes
from cni_common.kernel.route import RT_TABLE_MAIN
from cni_common.kernel.rtnetlink import RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE, RTMGRP_LINK
from cni_common.node import veth
from cni_common.node.lifecycle import Lifecycle, Part, in_container, refuse_elsewhere
from cni_common.node.netns_lock import NetnsLock
from cni_common.spec.errors import CNIError
from cni_common.spec.undo import BestEffort
from plugins.vrf import device

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Unrecorded
    from cni_common.node.owned import Owned
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.request import Request

_EVENTS = RTMGRP_LINK | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
_SECONDS = 1.0  # limit for addresses in the main table, which only routes with a source need
# Why an address or route cannot be made again: it is there, or the container has taken down the
# interface, or taken away the address or the route that it needs, or switched IPv6 off.
_PASSED = (
    *(errno.EEXIST, errno.ENODEV, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH),
    *(errno.EINVAL, errno.EACCES, errno.EADDRNOTAVAIL),
)


@dataclass(frozen=True, slots=True)
class VrfFacts:
    """The place of the container's interface. Addresses and routes are in hexadecimal digits."""

    PART = "vrf"
    name: str = ""  # of the VRF
    table: int = 0  # of the VRF
    index: int = 0  # of the interface
    addresses: Sequence[str] = ()  # of IPv6, before
    routes: Sequence[str] = ()  # before, without those that the kernel makes

    def in_vrf(self) -> list[WholeRoute]:
        """Return the routes as they are in the VRF."""
        return device.moved(map(WholeRoute.of_text, self.routes), RT_TABLE_MAIN, self.table)


class Vrf(Part):
    """The interface in the VRF, and the VRF, which other attachments may share."""

    facts = VrfFacts

    def teardown(self, req: Request, host: Host, record: Record, facts: VrfFacts) -> None:
        """Take the interface out of the VRF, and delete a VRF of this plugin that is empty then."""

        def leave(container: NetNS) -> None:
            with NetnsLock(host.state_dir, container):
                _leave(container, facts)

        in_container(req, host, record, leave)

    def teardown_unrecorded(self, req: Request, host: Host, found: Unrecorded) -> None:
        """Do the same by name; an interface of the reference leaves an empty VRF to be deleted."""
        container = host.find_netns(req.netns)
        name = req.config.get("vrfname", "")
        if container is None or not name:
            return
        with NetnsLock(host.state_dir, container):
            there = _find(container, name)
            link = container.netlink.link(req.ifname)
            if there is None:
                return
            vrf, table = there
            is_member = link is not None and link.master == vrf.index
            other = found.other_in(host, container) if is_member else None
            if other:
                owner = other.attachment.containerid
                host.log(f"DEL leaves '{req.ifname}' in '{name}': it is of container {owner}")
            elif link and is_member:
                found.exists = True
                _leave(container, _facts_now(container, link, name, table), of_reference=True)
            else:
                _delete_idle(container, name)

    def refuse_living(self, req: Request, host: Host, record: Record, _facts: VrfFacts) -> None:
        """Raise CNIError 4 if the attachment is in another namespace, which is there."""
        refuse_elsewhere(req, host, record)

    def present(self, _host: Host, record: Record, facts: VrfFacts) -> Iterator[Owned]:
        """Yield the interface's place and each route, if the namespace can be entered."""
        from cni_common.node.owned import Owned, recorded_netns

        ifname = record.attachment.ifname
        with recorded_netns(record) as container:
            if container is None:
                return
            there = _find(container, facts.name)
            link = container.netlink.link_at(facts.index)
            inside = link is not None and there is not None and link.master == there[0].index
            yield Owned(self.name, f"'{ifname}' in '{facts.name}', table {facts.table}", inside)
            for what, found in found_routes(container, facts):
                yield Owned("route", f"{what} over '{ifname}'", found)


PLACE = Vrf()
LIFECYCLE = Lifecycle("vrf", PLACE)


def found_routes(container: NetNS, facts: VrfFacts) -> Iterator[tuple[str, bool]]:
    """Yield each route that was moved into the VRF, and whether it is there."""
    present = {one.key for one in whole_routes(container.netlink, facts.index)}
    for one in facts.in_vrf():
        yield str(one), one.key in present


def await_use(
    container: NetNS, addresses: Collection[Address], table: int, *, seconds: float
) -> bool:
    """Wait until the kernel uses IPv6 addresses whose local routes are in `table`, by its events.

    Return False if that took longer than `seconds`.
    """
    return veth.wait_until(
        lambda: device.are_usable(container.netlink, addresses, table),
        partial(container.channel, NETLINK_ROUTE, _EVENTS),
        seconds,
    )


def _leave(container: NetNS, facts: VrfFacts, *, of_reference: bool = False) -> None:
    """Take the interface out of the VRF, with its addresses and routes; then see to the VRF."""
    link = container.netlink.link_at(facts.index) if facts.index else None
    there = _find(container, facts.name)
    mine = (0, there[0].index) if there else (0,)
    with BestEffort() as steps:
        if link and link.master in mine:
            steps.attempt("interface", partial(_take_out, container, link, facts))
        idle = partial(_delete_idle, container, facts.name, of_reference=of_reference)
        steps.attempt("VRF", idle)


def _take_out(container: NetNS, link: Link, facts: VrfFacts) -> None:
    netlink = container.netlink
    if link.master:
        device.set_master(netlink, link.index, 0)
    addresses = list(map(bytes.fromhex, facts.addresses))
    device.restore_addresses(netlink, link.index, addresses, absent=_PASSED)
    routes = device.moved(map(WholeRoute.of_text, facts.routes), 0, 0)
    needed = device.sources(routes)
    if needed and link.up:
        await_use(container, needed, device.local_table(RT_TABLE_MAIN), seconds=_SECONDS)
    present = {one.key for one in whole_routes(netlink, link.index)}
    missing = [one for one in routes if one.key not in present]
    netlink.channel.exchange([one.add() for one in missing], absent=_PASSED)


def _delete_idle(container: NetNS, name: str, *, of_reference: bool = False) -> None:
    """Delete a VRF without interfaces if this plugin has made it, or for the reference."""
    there = _find(container, name)
    if there is None:
        return
    vrf = there[0]
    ours = of_reference or vrf.mac == device.mac_of(container, name)
    if ours and not any(one.master == vrf.index for one in container.netlink.links()):
        container.netlink.delete_link(vrf.index)


def _find(container: NetNS, name: str) -> tuple[Link, int] | None:
    """Return the VRF of this name and its table, None if there is none."""
    try:
        return device.find(container, name)
    except CNIError:
        return None


def _facts_now(container: NetNS, link: Link, name: str, table: int) -> VrfFacts:
    """Return the facts of an interface that is in a VRF, by what there is."""
    routes = device.lost_routes(container.netlink, link.index, table)
    addresses = device.ipv6_addresses(container.netlink, link.index)
    return VrfFacts(
        name,
        table,
        link.index,
        [body.hex() for body in addresses],
        [one.text for one in device.moved(routes, table, RT_TABLE_MAIN)],
    )
