"""Routing rules, and whole routes: read, kept, made again in the same table or in another one.

A route that is removed is kept as the kernel has described it, so that it can be made again with
everything that it had (linux/rtnetlink.h, linux/fib_rules.h).
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import (
    HEADER_SIZE,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    Message,
    NetlinkError,
    attribute,
    attributes,
    each_attribute,
    number_of,
    u32,
)
from cni_common.kernel.route import (
    FAMILY,
    RT_TABLE_MAIN,
    RT_TABLE_UNSPEC,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTN_UNICAST,
    RTPROT_KERNEL,
    decode_route,
    encode_route_query,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.route import KernelRoute
    from cni_common.kernel.rtnetlink import Netlink
    from cni_common.spec.names import Address

RTM_DELROUTE, RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 25, 32, 33, 34
UNSUPPORTED = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)  # of a kernel without an IP version, or rules
# Tables that are not to be chosen: unspecified, for ids above 255, default, main, local.
RESERVED_TABLES = frozenset({0, 252, 253, 254, 255})
RT_TABLE_LOCAL = 255
VRF = "vrf"
IFLA_VRF_TABLE = 1  # linux/if_link.h
_TO_TABLE = 1  # FR_ACT_TO_TBL
_FRA_SRC, _FRA_PRIORITY, _FRA_SUPPRESS, _FRA_TABLE, _FRA_L3MDEV, _FRA_PROTOCOL = (
    2,
    6,
    14,
    15,
    19,
    21,
)
# Attributes of a rule that selects by nothing but its source; all others narrow it.
_PLAIN = frozenset({_FRA_SRC, _FRA_PRIORITY, _FRA_SUPPRESS, _FRA_TABLE, _FRA_PROTOCOL})
_RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_MULTIPATH = 4, 5, 7, 9
_RTA_CACHEINFO, _RTA_TABLE, _RTA_NH_ID = 12, 15, 30
_RTMSG, _RULE = struct.Struct("=8BI"), struct.Struct("=8BI")
_RTNEXTHOP = struct.Struct("=HBBi")
_ONLINK = 0x4  # RTNH_F_ONLINK: the only flag of a next hop that is no state of it
_NEITHER = 0xFFFFFFFF  # FRA_SUPPRESS_PREFIXLEN of a rule that suppresses nothing
_IPV6_METRIC = 1024  # of a route that is made without one (IP6_RT_PRIO_USER)


@dataclass(frozen=True, slots=True)
class Rule:
    """A routing rule."""

    version: int  # 4 or 6
    source: Address | None  # the one address by which alone it selects; None for all other rules
    table: int  # 0: none, or that of a VRF
    priority: int
    of_vrfs: bool  # it leads to the table of the VRF that a packet belongs to


def rules(netlink: Netlink, version: int) -> list[Rule] | None:
    """Return the rules of an IP version, in the order in which they are asked.

    None in a kernel that lacks the IP version, or rules. Raises NetlinkError.
    """
    body = _RULE.pack(FAMILY[version], *[0] * 8)
    message = Message("list rules", RTM_GETRULE, NLM_F_DUMP, body, _decode_rule)
    try:
        found = netlink.channel.dump(message)
    except NetlinkError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return None
    return [rule for rule in found if rule and rule.version == version]


def all_rules(netlink: Netlink) -> list[Rule]:
    """Return the rules of both IP versions. Raises NetlinkError."""
    return [rule for version in FAMILY for rule in rules(netlink, version) or ()]


def new_rule(source: Address, table: int) -> Message:
    """Return the request that sends the packets of one address to `table`."""
    what = f"add rule from {source} to table {table}"
    return Message(what, RTM_NEWRULE, NLM_F_CREATE | NLM_F_ACK, _encode_rule(source, table))


def no_rule(source: Address, table: int, priority: int | None = None) -> Message:
    """Return the request that removes the rule of `new_rule` with that priority, None: with any."""
    body = _encode_rule(source, table)
    if priority is not None:
        body += u32(_FRA_PRIORITY, priority)
    return Message(f"delete rule from {source} to table {table}", RTM_DELRULE, NLM_F_ACK, body)


@dataclass(frozen=True)  # without slots: decoded attributes are kept
class WholeRoute:
    """A route with everything that the kernel tells of it, the next hop's state left out."""

    body: bytes  # struct rtmsg and attributes

    @classmethod
    def of_text(cls, text: str) -> WholeRoute:
        """Return the route that `text` was made of."""
        return cls(bytes.fromhex(text))

    @property
    def text(self) -> str:
        """The route in the form for a record: hexadecimal digits."""
        return self.body.hex()

    @cached_property
    def told(self) -> KernelRoute:
        """The route, decoded."""
        found = decode_route(bytes(HEADER_SIZE) + self.body)
        if found is None:
            raise ValueError("a route of neither IPv4 nor IPv6")
        return found

    @cached_property
    def source(self) -> Address | None:
        """The preferred source address."""
        packed = attributes(self.body, _RTMSG.size).get(_RTA_PREFSRC)
        return ip_address(packed) if packed else None

    @cached_property
    def gateways(self) -> list[Address]:
        """The addresses of its next hops."""
        told = self.told
        hops = told.hops or [(told.route.gw, 0)]
        return [gateway for gateway, _ in hops if gateway]

    @cached_property
    def key(self) -> tuple[object, ...]:
        """By what two routes are the same, whether we or the kernel have described them."""
        told = self.told
        route = told.route
        metric = route.priority or (_IPV6_METRIC if route.dst.version == 6 else 0)
        table = route.table or RT_TABLE_MAIN
        next_hop = route.gw, told.interface, tuple(told.hops)
        return route.dst, table, metric, self.source, *next_hop

    def in_table(self, table: int) -> WholeRoute:
        """Return the same route in another table."""
        fields = list(_RTMSG.unpack_from(self.body))
        fields[4] = table if table < 256 else RT_TABLE_UNSPEC
        return WholeRoute(
            _RTMSG.pack(*fields) + _rest(self.body, _RTA_TABLE) + u32(_RTA_TABLE, table)
        )

    def from_source(self, address: Address) -> WholeRoute:
        """Return the same route with a preferred source address."""
        rest = _rest(self.body, _RTA_PREFSRC)
        return WholeRoute(self.body[: _RTMSG.size] + rest + attribute(_RTA_PREFSRC, address.packed))

    def add(self, *, last: bool = False) -> Message:
        """Return the request that makes the route.

        `last`: behind others to the same destination of the same metric, where the kernel puts its
        own; others come first.
        """
        told = self.told
        behind = NLM_F_APPEND if last or told.protocol == RTPROT_KERNEL else 0
        flags = NLM_F_CREATE | NLM_F_ACK | behind
        return Message(f"add route {self}", RTM_NEWROUTE, flags, self.body)

    def remove(self) -> Message:
        """Return the request that removes the route."""
        return Message(f"delete route {self}", RTM_DELROUTE, NLM_F_ACK, self.body)

    def __str__(self) -> str:
        route = self.told.route
        by = "".join(f" via {gateway}" for gateway in self.gateways)
        return f"to {route.dst}{by} in table {route.table or RT_TABLE_MAIN}"


def whole_routes(netlink: Netlink, index: int) -> list[WholeRoute]:
    """Return the unicast routes over an interface, in every table, in the kernel's order.

    An IPv6 route with several next hops is one for each of these, as it was made. An IPv4 route
    that uses other interfaces, too, is not among them, nor is one by an object `nexthop`.
    """
    found = []
    for version in FAMILY:
        query = encode_route_query(FAMILY[version])
        message = Message("list routes", RTM_GETROUTE, NLM_F_DUMP, query)
        for data in netlink.channel.dump(message):
            told = decode_route(data)
            if told and told.route.dst.version == version and told.type == RTN_UNICAST:
                found += [WholeRoute(body) for body in _bodies(data[HEADER_SIZE:], index)]
    return [one for one in found if _interfaces(one) == {index}]


def table_of_vrf(netlink: Netlink, link: Link | None) -> int:
    """Return the table of a VRF, 0 for any other interface."""
    return (
        number_of(netlink.info(link.index).get(IFLA_VRF_TABLE)) if link and link.kind == VRF else 0
    )


def used_tables(netlink: Netlink) -> set[int]:
    """Return the tables that rules, routes and VRFs use, and those that are reserved."""
    found = {*RESERVED_TABLES, *(rule.table for rule in all_rules(netlink))}
    for version in FAMILY:
        found |= {one.route.table or RT_TABLE_MAIN for one in netlink.all_routes(version)}
    return found | {table_of_vrf(netlink, link) for link in netlink.links()}


def free_table(used: Collection[int], first: int) -> int:
    """Return the lowest table from `first` on that is not in use."""
    while first in used:
        first += 1
    return first


def tables_beside_main(netlink: Netlink, link: Link) -> set[int]:
    """Return the tables that have an interface's routes instead of the main table.

    Rules send the packets of its addresses to these tables, or one is that of its VRF.
    """
    addresses = {cidr.ip for cidr, _ in netlink.addresses(link.index)}
    found = {rule.table for rule in all_rules(netlink) if rule.source in addresses}
    if link.master:
        found.add(table_of_vrf(netlink, netlink.link_at(link.master)))
    return found - {0}


def _interfaces(route: WholeRoute) -> set[int]:
    told = route.told
    return {index for _, index in told.hops} or {told.interface}


def _bodies(body: bytes, index: int) -> Iterator[bytes]:
    """Yield what is to be kept of a route; for IPv6 the parts of it that use the interface."""
    fields = list(_RTMSG.unpack_from(body))
    fields[8] &= _ONLINK
    attrs = attributes(body, _RTMSG.size)
    if _RTA_NH_ID in attrs:
        return
    rest = _rest(body, _RTA_CACHEINFO, _RTA_MULTIPATH)
    hops = list(_each_hop(attrs.get(_RTA_MULTIPATH, b"")))
    if not hops:
        yield _RTMSG.pack(*fields) + rest
    elif fields[0] == FAMILY[6]:
        for flags, _, interface, more in hops:
            if interface == index:
                one = _RTMSG.pack(*fields[:8], flags & _ONLINK)
                yield one + rest + u32(_RTA_OIF, interface) + more
    else:
        packed = b"".join(
            _RTNEXTHOP.pack(_RTNEXTHOP.size + len(more), flags & _ONLINK, weight, interface) + more
            for flags, weight, interface, more in hops
        )
        yield _RTMSG.pack(*fields) + rest + attribute(_RTA_MULTIPATH, packed)


def _each_hop(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield flags, weight, interface and attributes of each struct rtnexthop."""
    while len(data) >= _RTNEXTHOP.size:
        size, flags, weight, index = _RTNEXTHOP.unpack_from(data)
        yield flags, weight, index, data[_RTNEXTHOP.size : size]
        data = data[max(size, _RTNEXTHOP.size) :]


def _rest(body: bytes, *without: int) -> bytes:
    """Return the attributes of a route, some left out."""
    found = each_attribute(body, _RTMSG.size)
    return b"".join(attribute(kind, payload) for kind, payload in found if kind not in without)


def _encode_rule(source: Address, table: int) -> bytes:
    """Return a struct fib_rule_hdr with its attributes."""
    low = table if table < 256 else RT_TABLE_UNSPEC
    header = _RULE.pack(FAMILY[source.version], 0, source.max_prefixlen, 0, low, 0, 0, _TO_TABLE, 0)
    return header + attribute(_FRA_SRC, source.packed) + u32(_FRA_TABLE, table)


def _decode_rule(data: bytes) -> Rule | None:
    """Return the rule that an RTM_NEWRULE describes, None unless it is of IPv4 or IPv6."""
    family, to_bits, bits, tos, table, _, _, action, flags = _RULE.unpack_from(data, HEADER_SIZE)
    version = next((one for one, number in FAMILY.items() if number == family), 0)
    if not version:
        return None
    attrs = attributes(data, HEADER_SIZE + _RULE.size)
    narrowed = {kind for kind in attrs if kind not in _PLAIN} or tos or to_bits or flags
    suppresses = number_of(attrs.get(_FRA_SUPPRESS, b"\xff" * 4)) != _NEITHER
    is_plain = action == _TO_TABLE and not narrowed and not suppresses
    source = attrs.get(_FRA_SRC, b"")
    return Rule(
        version,
        ip_address(source) if is_plain and bits == 8 * len(source) > 0 else None,
        number_of(attrs.get(_FRA_TABLE)) or table,
        number_of(attrs.get(_FRA_PRIORITY)),
        of_vrfs=bool(number_of(attrs.get(_FRA_L3MDEV))),
    )
