"""A device's settings on the host, which it loses as it leaves: read before, given back after.

Addresses and routes are kept as the kernel's own messages, so that nothing of them is lost: label,
peer, metric, protocol, several next hops. Addresses and routes with a lifetime are left out: a DHCP
client or a router gives them anew. The kernel makes its own again.
"""

from __future__ import annotations

import errno
import struct
from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel.link import IFF_ALLMULTI, IFF_PROMISC, IFF_UP
from cni_common.kernel.netlink import (
    HEADER_SIZE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
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
    IFA_F_NOPREFIXROUTE,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    RTN_UNICAST,
    RTPROT_RA,
    decode_address,
    decode_route,
    encode_address_query,
)
from plugins.host_device import link as links

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cni_common.kernel.netns import NetNS
    from plugins.host_device.facts import MovedFacts
    from plugins.host_device.link import Device

FLAGS = IFF_UP | IFF_PROMISC | IFF_ALLMULTI
_NEW = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK
_ROUTES_MAX = 1000  # kept; a device with more has a routing daemon, which makes them anew
# linux/if_addr.h, linux/rtnetlink.h
_IFADDRMSG, _RTMSG, _RTNEXTHOP = (
    struct.Struct("=BBBBI"),
    struct.Struct("=8BI"),
    struct.Struct("=HBBi"),
)
_IFA_CACHEINFO, _IFA_FLAGS, _IFA_PROTO = 6, 8, 11
_IFA_SENT = (1, 2, 3, 4, 9, _IFA_PROTO)  # address, local, label, broadcast, metric
_IFA_F_SENT = 0x02 | 0x10 | 0x100 | IFA_F_NOPREFIXROUTE | 0x400  # that a request may have
_IFAPROT_KERNEL_LL, _RT_SCOPE_LINK, _FOREVER = 3, 253, 0xFFFFFFFF
_RTA_OIF, _RTA_MULTIPATH, _RTA_CACHEINFO, _RTA_EXPIRES, _RTA_NH_ID = 4, 9, 12, 23, 30
_RTA_NOT_SENT = (_RTA_OIF, _RTA_MULTIPATH, _RTA_CACHEINFO, _RTA_EXPIRES, _RTA_NH_ID)
_RTPROT_REDIRECT, _RTPROT_KERNEL, _RTM_F_CLONED = 1, 2, 0x200
_RTNH_F_SENT = 0x2 | 0x4  # RTNH_F_PERVASIVE, RTNH_F_ONLINK
# The kernel refuses what the host no longer has a place for. Everything else may pass.
_REFUSED = (
    *(errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL),
    *(errno.EOPNOTSUPP, errno.ENODEV, errno.EACCES, errno.EBUSY, errno.ERANGE, errno.ENOENT),
)


def read_addresses(netns: NetNS, index: int) -> list[list[str]]:
    """Return the addresses that last: each in words, and as hexadecimal message. NetlinkError."""
    found = []
    for version in FAMILY:
        body = encode_address_query(index, version)
        message = Message("list addresses", RTM_GETADDR, NLM_F_DUMP, body)
        for data in netns.netlink.channel.dump(message):
            where, cidr, _ = decode_address(data)
            if (where, cidr.version) == (index, version) and _address_lasts(data):
                found.append([str(cidr), data[HEADER_SIZE:].hex()])
    return found


def read_routes(netns: NetNS, index: int) -> list[list[str]]:
    """Return the routes over an interface that last, likewise. Raises NetlinkError."""
    found = []
    for family in FAMILY.values():
        body = _RTMSG.pack(family, *[0] * 8) + u32(_RTA_OIF, index)  # older kernels send all
        message = Message("list routes", RTM_GETROUTE, NLM_F_DUMP, body)
        for data in netns.netlink.channel.dump(message):
            route = decode_route(data) if data[HEADER_SIZE] == family else None
            if route is None or route.type != RTN_UNICAST or not _route_lasts(data):
                continue
            if index in (route.interface, *(where for _, where in route.hops)):
                via = f" via {route.route.gw}" if route.route.gw else ""
                found.append([f"{route.route.dst}{via}", data[HEADER_SIZE:].hex()])
    return found


def routes_to_keep(routes: Sequence[list[str]], log: Callable[[str], object]) -> list[list[str]]:
    """Return as many of the routes as a record has room for."""
    if len(routes) > _ROUTES_MAX:
        log(f"of {len(routes)} routes over the device the first {_ROUTES_MAX} will be given back")
    return list(routes[:_ROUTES_MAX])


def give_back(
    netns: NetNS, device: Device, facts: MovedFacts, log: Callable[[str], object]
) -> None:
    """Give a device that has come home everything that it had. Raises NetlinkError.

    A setting that the host has no place for any more, such as a route whose gateway is gone, is
    logged. So is any failure if one has failed a call before: the reason may persist, and the
    container must go.
    """
    for what, step in _steps(netns, device, facts):
        try:
            step()
        except NetlinkError as error:
            if error.errno == errno.EEXIST:
                continue
            if error.errno not in _REFUSED and not facts.failed:
                raise
            log(f"'{device.link.name}' comes home without {what}: {error}")


def _steps(
    netns: NetNS, device: Device, facts: MovedFacts
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is to be done, in order: IPv6 takes routes only once the interface is up."""
    link, netlink = device.link, netns.netlink
    if facts.mac and link.mac != facts.mac:
        yield f"MAC {facts.mac}", lambda: netlink.set_mac(link.index, facts.mac)
    if facts.mtu and link.mtu != facts.mtu:
        yield f"MTU {facts.mtu}", lambda: netlink.set_mtu(link.index, facts.mtu)
    if link.tx_queue != facts.tx_queue:
        yield "its queue's length", lambda: netlink.set_tx_queue(link.index, facts.tx_queue)
    if facts.master:
        yield f"master '{facts.master}'", lambda: _enslave(netns, link.index, facts.master)
    if (link.flags ^ facts.flags) & FLAGS:
        yield "its flags", lambda: links.set_flags(netns, link.index, facts.flags, FLAGS)
    for text, data in facts.addresses:
        body = _address_again(bytes.fromhex(data), link.index)
        message = Message(f"add address {text}", RTM_NEWADDR, _NEW, body)
        yield f"address {text}", partial(netlink.channel.exchange, [message])
    for text, data in facts.routes:
        body = _route_again(bytes.fromhex(data), facts.home_index, link.index)
        message = Message(f"add route {text}", RTM_NEWROUTE, _NEW, body)
        yield f"route {text}", partial(netlink.channel.exchange, [message])


def _enslave(netns: NetNS, index: int, master: str) -> None:
    found = netns.netlink.link(master)
    if found is None:
        raise NetlinkError(errno.ENODEV, f"there is no interface '{master}'")
    netns.netlink.set_master(index, found.index)


def _address_lasts(data: bytes) -> bool:
    """Tell whether an address has no lifetime, and is not the kernel's own link-local one."""
    attrs = attributes(data, HEADER_SIZE + _IFADDRMSG.size)
    valid = number_of(attrs.get(_IFA_CACHEINFO, bytes(8))[4:8])
    return valid == _FOREVER and number_of(attrs.get(_IFA_PROTO)) != _IFAPROT_KERNEL_LL


def _route_lasts(data: bytes) -> bool:
    """Tell whether a route has no lifetime, and neither the kernel nor a router has made it."""
    *_, protocol, _scope, _kind, flags = _RTMSG.unpack_from(data, HEADER_SIZE)
    attrs = attributes(data, HEADER_SIZE + _RTMSG.size)
    has_lifetime = number_of(attrs.get(_RTA_CACHEINFO, b"")[8:12]) or _RTA_EXPIRES in attrs
    made = protocol in (_RTPROT_KERNEL, _RTPROT_REDIRECT, RTPROT_RA) or flags & _RTM_F_CLONED
    return not (has_lifetime or made)


def _address_again(data: bytes, index: int) -> bytes:
    """Return the body of the request for an address that the kernel has listed."""
    family, bits, low_flags, scope, _ = _IFADDRMSG.unpack_from(data)
    attrs = attributes(data, _IFADDRMSG.size)
    flags = (number_of(attrs.get(_IFA_FLAGS)) or low_flags) & _IFA_F_SENT
    kept = b"".join(attribute(kind, attrs[kind]) for kind in _IFA_SENT if kind in attrs)
    return _IFADDRMSG.pack(family, bits, flags & 0xFF, scope, index) + kept + u32(_IFA_FLAGS, flags)


def _route_again(data: bytes, old: int, new: int) -> bytes:
    """Return the body of the request for a listed route; the interface `old` is `new` by now."""
    *head, flags = _RTMSG.unpack_from(data)
    kept = []
    for kind, payload in each_attribute(data, _RTMSG.size):
        if kind == _RTA_OIF:
            kept.append(u32(kind, new if number_of(payload) == old else number_of(payload)))
        elif kind == _RTA_MULTIPATH:
            kept.append(attribute(kind, *_hops_again(payload, old, new)))
        elif kind not in _RTA_NOT_SENT:
            kept.append(attribute(kind, payload))
    return _RTMSG.pack(*head, flags & _RTNH_F_SENT) + b"".join(kept)


def _hops_again(data: bytes, old: int, new: int) -> Iterator[bytes]:
    """Yield each struct rtnexthop with its attributes."""
    while len(data) >= _RTNEXTHOP.size:
        size, flags, weight, index = _RTNEXTHOP.unpack_from(data)
        where = new if index == old else index
        hop = _RTNEXTHOP.pack(size, flags & _RTNH_F_SENT, weight, where)
        yield hop + data[_RTNEXTHOP.size : size] + bytes(-size & 3)
        data = data[max(size + 3 & ~3, _RTNEXTHOP.size) :]
