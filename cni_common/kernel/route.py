"""Addresses and routes of an interface, and their rtnetlink encoding (linux/rtnetlink.h)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import (
    HEADER_SIZE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    attribute,
    attributes,
    number_of,
    u32,
)
from cni_common.spec.result import Route

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cni_common.spec.names import Address, Cidr

# linux/rtnetlink.h, linux/if_addr.h
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_TENTATIVE, IFA_F_NOPREFIXROUTE = 0x02, 0x08, 0x40, 0x200
RTPROT_KERNEL, RTPROT_BOOT, RTPROT_RA = 2, 3, 9
RTN_UNICAST, RTN_LOCAL = 1, 2
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
RT_TABLE_MAIN, RT_TABLE_UNSPEC = 254, 0
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 2, 4, 5, 6, 7
_RTA_METRICS, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA = 8, 9, 15, 18
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
_IFADDRMSG, _RTMSG = struct.Struct("=BBBBI"), struct.Struct("=8BI")
_RTNEXTHOP = struct.Struct("=HBBi")
_ADDRESS_SIZE = {socket.AF_INET: 4, socket.AF_INET6: 16}  # bytes
_NEW = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route as the kernel describes it."""

    route: Route
    type: int  # RTN_*
    protocol: int  # RTPROT_*
    interface: int  # its index; 0: none, or several next hops
    hops: Sequence[tuple[Address | None, int]] = ()  # gateway and interface of several next hops
    flags: int = 0  # RTNH_F_*
    source: Address | None = None  # preferred for packets of the host itself (RTA_PREFSRC)


def address_message(index: int, address: Cidr, *, dad: bool, flags: int = 0) -> Message:
    """Return the request that adds `address` with these IFA_F_ flags."""
    flags |= IFA_F_NODAD if address.version == 6 and not dad else 0
    body = encode_address(index, address, flags)
    return Message(f"add address {address}", RTM_NEWADDR, _NEW, body)


def route_message(
    index: int, route: Route, *, source: Address | None = None, exclusive: bool = False
) -> Message:
    """Return the request that adds `route` over the interface `index`.

    `source`: the preferred source address (RTA_PREFSRC). `exclusive`: the request fails with EEXIST
    if there is a route to the same destination, even over another interface.
    """
    table = RT_TABLE_MAIN if route.table is None else route.table
    attrs = [u32(_RTA_OIF, index), u32(_RTA_TABLE, table)]
    if route.dst.prefixlen:
        attrs.append(attribute(_RTA_DST, route.dst.network_address.packed))
    if route.gw is not None:
        attrs.append(attribute(_RTA_GATEWAY, route.gw.packed))
    if route.priority is not None:
        attrs.append(u32(_RTA_PRIORITY, route.priority))
    if source is not None:
        attrs.append(attribute(_RTA_PREFSRC, source.packed))
    metrics = ((_RTAX_MTU, route.mtu), (_RTAX_ADVMSS, route.advmss))
    if route.mtu or route.advmss:
        attrs.append(
            attribute(_RTA_METRICS, *(u32(kind, value) for kind, value in metrics if value))
        )
    body = _encode_route(
        *attrs,
        version=route.dst.version,
        bits=(route.dst.prefixlen, 0),
        table=table if table < 256 else RT_TABLE_UNSPEC,
        proto=RTPROT_BOOT,
        scope=RT_SCOPE_UNIVERSE if route.scope is None else route.scope,
        type=RTN_UNICAST,
    )
    gateway = f" via {route.gw}" if route.gw is not None else ""
    flags = NLM_F_CREATE | NLM_F_ACK | (NLM_F_EXCL if exclusive else 0)
    return Message(f"add route {route.dst}{gateway}", RTM_NEWROUTE, flags, body)


def encode_address(index: int, address: Cidr, flags: int = 0) -> bytes:
    """Return a struct ifaddrmsg with its attributes."""
    version, prefixlen, packed = address.version, address.network.prefixlen, address.packed
    attrs = [attribute(_IFA_LOCAL, packed), attribute(_IFA_ADDRESS, packed)]
    if version == 4 and prefixlen < 31:
        attrs.append(attribute(_IFA_BROADCAST, address.network.broadcast_address.packed))
    if flags > 0xFF:
        attrs.append(u32(_IFA_FLAGS, flags))
    return _IFADDRMSG.pack(FAMILY[version], prefixlen, flags & 0xFF, 0, index) + b"".join(attrs)


def encode_address_query(index: int, version: int) -> bytes:
    """Return the request for the addresses of an interface, 0: of all."""
    return _IFADDRMSG.pack(FAMILY[version], 0, 0, 0, index)


def decode_address(data: bytes) -> tuple[int, Cidr, int]:
    """Return index, address and IFA_F_ flags of an RTM_NEWADDR."""
    _, prefixlen, flags, _, index = _IFADDRMSG.unpack_from(data, HEADER_SIZE)
    attrs = attributes(data, HEADER_SIZE + _IFADDRMSG.size)
    packed = attrs.get(_IFA_LOCAL) or attrs[_IFA_ADDRESS]
    return index, ip_interface((packed, prefixlen)), number_of(attrs.get(_IFA_FLAGS)) or flags


def encode_route_query(family: int) -> bytes:
    """Return the request for all routes of an address family."""
    return _RTMSG.pack(family, *[0] * 8)


def encode_route_lookup(address: Address, source: Address | None = None, vrf: int = 0) -> bytes:
    """Return the request for the route that a packet from `source` to `address` would take.

    `vrf`: index of the VRF that sends it.
    """
    return _encode_route(
        attribute(_RTA_DST, address.packed),
        attribute(_RTA_SRC, source.packed) if source else b"",
        u32(_RTA_OIF, vrf) if vrf else b"",
        version=address.version,
        bits=(address.max_prefixlen, source.max_prefixlen if source else 0),
    )


def decode_lookup(data: bytes) -> tuple[int, int]:
    """Return type (RTN_*) and interface index of the route in an RTM_NEWROUTE."""
    type: int = _RTMSG.unpack_from(data, HEADER_SIZE)[7]
    return type, number_of(attributes(data, HEADER_SIZE + _RTMSG.size).get(_RTA_OIF))


def decode_route(data: bytes) -> KernelRoute | None:
    """Return the route that an RTM_NEWROUTE describes, None unless it is IPv4 or IPv6."""
    family, bits, _, _, table, protocol, scope, type, flags = _RTMSG.unpack_from(data, HEADER_SIZE)
    if family not in _ADDRESS_SIZE:
        return None
    attrs = attributes(data, HEADER_SIZE + _RTMSG.size)
    metrics = attributes(attrs.get(_RTA_METRICS, b""))
    dst = attrs.get(_RTA_DST) or bytes(_ADDRESS_SIZE[family])
    source = attrs.get(_RTA_PREFSRC)
    return KernelRoute(
        Route(
            dst=ip_network((dst, bits), strict=False),
            gw=_gateway(attrs),
            mtu=_given_number(metrics.get(_RTAX_MTU)),
            advmss=_given_number(metrics.get(_RTAX_ADVMSS)),
            priority=_given_number(attrs.get(_RTA_PRIORITY)),
            table=_given_number(attrs.get(_RTA_TABLE)) or table,
            scope=scope,
        ),
        type=type,
        protocol=protocol,
        interface=number_of(attrs.get(_RTA_OIF)),
        hops=tuple(_next_hops(attrs.get(_RTA_MULTIPATH, b""))),
        flags=flags,
        source=ip_address(source) if source else None,
    )


def _gateway(attrs: Mapping[int, bytes]) -> Address | None:
    packed = attrs.get(_RTA_GATEWAY) or attrs.get(_RTA_VIA, b"")[2:]  # behind its family
    return ip_address(packed) if packed else None


def _next_hops(data: bytes) -> Iterator[tuple[Address | None, int]]:
    """Yield gateway and interface of each struct rtnexthop with its attributes."""
    while len(data) >= _RTNEXTHOP.size:
        size, _, _, index = _RTNEXTHOP.unpack_from(data)
        yield _gateway(attributes(data[:size], _RTNEXTHOP.size)), index
        data = data[max(size, _RTNEXTHOP.size) :]


def _given_number(payload: bytes | None) -> int | None:
    return None if payload is None else number_of(payload)


def _encode_route(
    *attrs: bytes,
    version: int,
    bits: tuple[int, int],
    table: int = 0,
    proto: int = 0,
    scope: int = 0,
    type: int = 0,
) -> bytes:
    """Return a struct rtmsg with attributes; `bits`: prefix lengths of destination and source."""
    header = _RTMSG.pack(FAMILY[version], *bits, 0, table, proto, scope, type, 0)
    return header + b"".join(attrs)
