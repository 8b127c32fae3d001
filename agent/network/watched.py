"""Checks kernel events: whether one says that others have changed objects of ours.

The content decides: an event that brings the kernel to what was applied last is our own, or
harmless. Of nftables, where content is not at hand, the sender's port tells. So an application that
changes nothing causes no other one.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING

from agent.network.kernel import MAIN
from agent.network.settings import PROTOCOL
from cni_common.kernel.link import IFF_UP, decode_link
from cni_common.kernel.netlink import HEADER_SIZE, attributes, number_of, string_of
from cni_common.kernel.route import decode_address, decode_route
from commands import changes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from agent.cluster import Address, Network
    from agent.network.kernel import Route
    from cni_common.kernel.nft_table import Table

# linux/rtnetlink.h, linux/netconf.h, linux/neighbour.h, linux/netfilter/nfnetlink.h
GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400 | 1 << 23 | 1 << 24
NFT_GROUPS = 1 << 6  # NFNLGRP_NFTABLES
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR = 16, 17, 20, 21
_NEWROUTE, _DELROUTE, _NEWNEIGH, _DELNEIGH = 24, 25, 28, 29
_NEWNETCONF = 80
_NETCONF_IFINDEX, _NETCONF_FORWARDING, _NETCONF_ALL = 1, 2, -1
_NDA_DST, _NDA_LLADDR, _AF_BRIDGE = 1, 2, 7
_FAMILIES = {2: 4, 10: 6}
_NDMSG, _NFGENMSG_SIZE = struct.Struct("=Bxxxi4x"), 4
_PORT = struct.Struct("=I")
_PORT_OFFSET = 12  # nlmsg_pid in struct nlmsghdr
_NFTABLES = 10
_DELSETELEM = 14  # NFT_MSG_DELSETELEM: each DEL of a pod sends it
PODS = "rules of pods were deleted"
LOST = "kernel events were lost"


@dataclass(frozen=True, slots=True)
class Watched:
    """The state that was applied last, as far as events can contradict it."""

    routes: Mapping[Network, Route] = field(default_factory=dict)
    devices: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # name: index, MTU
    addresses: Mapping[Address, bool] = field(default_factory=dict)  # whether it was there
    overlay: int = 0  # index of the device whose neighbours are ours
    neighbours: Mapping[Address, str] = field(default_factory=dict)  # its MACs, by inner address
    versions: Collection[int] = ()  # that are forwarded
    nft_ports: Collection[int] = ()  # netlink ports by which we change nftables


def reason(kind: int, part: bytes, watched: Watched) -> str:
    """Return what an rtnetlink event says that is not as it was applied, or ""."""
    check = _CHECKS.get(kind)
    return check(kind, part, watched) if check else ""


def nft_reason(kind: int, part: bytes, watched: Watched, table: Table) -> str:
    """Return words if an nfnetlink event is about `table` and by others, or ""."""
    if kind >> 8 != _NFTABLES:
        return ""
    name = string_of(attributes(part, HEADER_SIZE + _NFGENMSG_SIZE).get(1))
    (port,) = _PORT.unpack_from(part, _PORT_OFFSET)
    if port in watched.nft_ports:
        return ""
    if (name, part[HEADER_SIZE]) == (table.name, table.family):
        return f"'{table}' of nftables was changed"
    return PODS if changes.is_loss(kind, part) and kind & 0xFF != _DELSETELEM else ""


def _link(kind: int, part: bytes, watched: Watched) -> str:
    link = decode_link(part)
    known = watched.devices.get(link.name)
    if known is None:
        by_index = {index: name for name, (index, _) in watched.devices.items()}
        name = by_index.get(link.index)
        return f"interface '{name}' was renamed" if name and kind == _NEWLINK else ""
    if kind == _DELLINK:
        return f"interface '{link.name}' was deleted"
    if not link.flags & IFF_UP:
        return f"interface '{link.name}' was set down"
    if known != (link.index, link.mtu):
        return f"interface '{link.name}' was changed, its MTU is {link.mtu}"
    return ""


def _address(kind: int, part: bytes, watched: Watched) -> str:
    _, cidr, _ = decode_address(part)
    was_there = watched.addresses.get(cidr.ip)
    if was_there is None or was_there == (kind == _NEWADDR):
        return ""
    return f"address {cidr.ip} was {'deleted' if was_there else 'added'}"


def _route(kind: int, part: bytes, watched: Watched) -> str:
    found = decode_route(part)
    if found is None or found.route.table != MAIN:
        return ""
    wanted = watched.routes.get(found.route.dst)
    if wanted is None:
        return ""
    next_hop = (found.type, found.route.gw)
    is_right = found.protocol == PROTOCOL and next_hop == (wanted.type, wanted.via)
    if kind == _DELROUTE and (is_right or found.protocol != PROTOCOL):
        return f"the route to {found.route.dst} was deleted"
    if kind == _NEWROUTE and not is_right:
        return f"the route to {found.route.dst} was changed"
    return ""


def _neighbour(kind: int, part: bytes, watched: Watched) -> str:
    """Check an entry of the overlay's neighbours, or of its FDB."""
    family, index = _NDMSG.unpack_from(part, HEADER_SIZE)
    if index != watched.overlay or not index:
        return ""
    attrs = attributes(part, HEADER_SIZE + _NDMSG.size)
    mac = attrs.get(_NDA_LLADDR, b"").hex(":")
    if family == _AF_BRIDGE:
        is_lost = kind == _DELNEIGH and mac in watched.neighbours.values()
        return f"{mac} was deleted from the FDB of the overlay" if is_lost else ""
    dst = attrs.get(_NDA_DST)
    wanted = watched.neighbours.get(ip_address(dst)) if dst else None
    if wanted and (kind == _DELNEIGH or mac != wanted):
        return f"neighbour {ip_address(dst or b'')} of the overlay was changed"
    return ""


def _netconf(_kind: int, part: bytes, watched: Watched) -> str:
    version = _FAMILIES.get(part[HEADER_SIZE], 0)
    attrs = attributes(part, HEADER_SIZE + 4)
    index = int.from_bytes(attrs.get(_NETCONF_IFINDEX, b""), sys.byteorder, signed=True)
    forwarding = attrs.get(_NETCONF_FORWARDING)
    if version in watched.versions and index == _NETCONF_ALL and forwarding is not None:
        return "" if number_of(forwarding) else f"forwarding of IPv{version} was switched off"
    return ""


_CHECKS = {
    _NEWLINK: _link,
    _DELLINK: _link,
    _NEWADDR: _address,
    _DELADDR: _address,
    _NEWROUTE: _route,
    _DELROUTE: _route,
    _NEWNEIGH: _neighbour,
    _DELNEIGH: _neighbour,
    _NEWNETCONF: _netconf,
}
