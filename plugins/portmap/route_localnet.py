"""Connections from 127.0.0.1 to a container: route_localnet, never without its guard.

With that sysctl the kernel accepts packets from and to 127.0.0.0/8 on an interface that is not lo,
also forged ones of a container or a neighbour (CVE-2020-8558). A chain of ours drops such packets
on the interfaces whose sysctl is set, before any other chain.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_layout, nft_table
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.nft_layout import TABLE, Chain, Layout, Set
from cni_common.kernel.nft_table import interface_key, interface_name
from cni_common.node.record import Lock
from cni_common.spec.errors import CNIError, Code, drifted
from plugins.portmap import layout, services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_layout import Rule
    from cni_common.kernel.nft_messages import Element
    from cni_common.node.host import Host
    from cni_common.spec.names import Address

DNAT = "CNI-HOSTPORT-DNAT"  # the reference's chain of iptables, with jumps to all mappings
_NAT = nft_table.Table(nft_table.IPV4, "nat")
GUARD, INTERFACES = "hostport_guard", "localnet"  # chain and set
_OURS, _FOUND = "switched on", "found on"


def _drop() -> Iterator[Rule]:
    packet = nft_layout.FAMILIES[4]
    for offset in (packet.source, packet.destination):
        yield [
            nft_expressions.iifname(),
            nft_expressions.lookup(INTERFACES),
            *packet.within(offset, *layout.LOOPBACK),
            nft_expressions.verdict(nft_table.DROP),
        ]


LAYOUT = Layout(
    TABLE,
    (Set(INTERFACES, nft_table.IIFNAME_KEY, goes_filled=True),),
    # Before connection tracking.
    (Chain(GUARD, _drop, ("filter", nft_table.PREROUTING, nft_layout.RAW)),),
)


@dataclass(frozen=True, slots=True)
class Egress:
    """The output interface of connections from 127.0.0.1; "" if there is none to open.

    `ours`: no other program has set its sysctl. `private`: no other container is behind it.
    """

    name: str = ""
    ours: bool = False
    private: bool = False


def find(netns: NetNS, address: Address, was_ours: Callable[[str], bool]) -> Egress:
    """Return the output interface to `address`, before anything is changed.

    `was_ours` tells whether the sysctl was set for another attachment, in case its guard is lost.
    """
    name = interface_towards(netns, address)
    if not name or netns.sysctl(sysctl_of("all")) == "1":
        return Egress()
    guard = _look(netns, name)
    if guard:
        return Egress(name, guard.comment == _OURS)
    ours = netns.sysctl(sysctl_of(name)) != "1" or was_ours(name)
    link = netns.netlink.link(name)
    return Egress(name, ours, link is not None and link.kind == "veth")


def ensure(host: Host, egress: Egress) -> None:
    """Set route_localnet on that interface, behind the guard; say so where it is read-only.

    Raises CNIError 50, OSError.
    """
    if not egress.name:
        return
    # The guard may be gone since `find`, with the last other mapping.
    if _look(host.netns, egress.name) is None:
        with Lock(host.records):
            _guard(host.netns, egress)
    try:
        host.netns.sysctl(sysctl_of(egress.name), "1")
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        host.log(
            f"cannot set {sysctl_of(egress.name)} ({error.strerror}): the ports are not reached by"
            " 127.0.0.1, but by the other addresses of this host"
        )


def check(netns: NetNS, address: Address) -> Iterator[CNIError]:
    """Yield a finding for each obstacle to connections from 127.0.0.1 to `address`."""
    name = interface_towards(netns, address)
    if not name or netns.sysctl(sysctl_of("all")) == "1":
        return
    guarded = is_guarded(netns, name)
    # Where it cannot be set, ADD has said so.
    if netns.sysctl(sysctl_of(name)) != "1" and not netns.sysctl_is_read_only(sysctl_of(name)):
        # Never without its guard: then only a new ADD makes both.
        remedy = f"run 'sysctl -w {sysctl_of(name)}=1'" if guarded else ""
        yield drifted(f"sysctl {sysctl_of(name)} is no longer 1", remedy)
    if not guarded:
        yield drifted(f"the guard of 127.0.0.0/8 on '{name}' is missing")


def is_guarded(netns: NetNS, name: str) -> bool:
    """Tell whether packets from and to 127.0.0.0/8 are dropped on an interface."""
    element = TABLE.element(netns, INTERFACES, interface_key(name))
    return element is not None and not LAYOUT.drift(netns)


def forget(netns: NetNS, name: str) -> None:
    """Undo `ensure` for an interface that no other container is behind."""
    _switch_off(netns, name)
    LAYOUT.remove(netns, [(INTERFACES, interface_key(name))])


def remove_with_base(host: Host) -> None:
    """Remove the shared chains, maps, guard and sysctls if there are no mappings."""
    with Lock(host.records):
        _remove_with_base(host.netns)


def _remove_with_base(netns: NetNS) -> None:
    """Remove guards one at a time, so that a sysctl that must be set again has its guard."""
    is_guarded = LAYOUT.is_there(netns) and not _NAT.rules(netns, DNAT)
    layouts = [layout.LAYOUT] if layout.LAYOUT.is_there(netns) else []
    layouts += [services.LAYOUT] if services.LAYOUT.is_there(netns) else []
    layouts += [LAYOUT] if is_guarded else []
    removal = nft_layout.removal(netns, layouts)
    if not removal:
        return
    interfaces = TABLE.elements(netns, INTERFACES) if is_guarded else []
    ours = [interface_name(one.key) for one in interfaces if one.comment == _OURS]
    for name in ours:
        _switch_off(netns, name)
    if nft_table.apply_if_unused(netns, removal):
        return
    there = {one.key for one in TABLE.elements(netns, INTERFACES)}  # an ADD came in between
    for name in ours:
        if interface_key(name) in there:
            netns.sysctl(sysctl_of(name), "1")


def interface_towards(netns: NetNS, address: Address) -> str:
    """Return the output interface to `address`, "" without a route."""
    _, index = netns.netlink.route_to(address)
    return netns.netlink.name_of(index) if index else ""


def _look(netns: NetNS, name: str) -> Element | None:
    try:
        return TABLE.element(netns, INTERFACES, interface_key(name))
    except NetlinkError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
            raise
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"nftables cannot guard 127.0.0.0/8 on '{name}': {error.strerror}; load nf_tables, or"
            ' set "snat": false',
        ) from None


def _guard(netns: NetNS, egress: Egress) -> None:
    """Drop packets that arrive on that interface from or to 127.0.0.0/8."""
    comment = _OURS if egress.ours else _FOUND
    element = TABLE.add_element(INTERFACES, interface_key(egress.name), comment=comment)
    try:
        # With the base each time: its rules make the sysctl safe.
        nft_table.apply(netns, [*LAYOUT.base(), element])
    except NetlinkError as error:
        if error.errno != errno.EEXIST:  # another ADD was faster
            raise


def _switch_off(netns: NetNS, name: str) -> None:
    try:
        netns.sysctl(sysctl_of(name), "0")
    except FileNotFoundError:
        return  # the sysctl is gone with its interface


def sysctl_of(name: str) -> str:
    """Return the sysctl of an interface, as a path below /proc/sys."""
    return f"net/ipv4/conf/{name}/route_localnet"
