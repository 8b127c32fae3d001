"""rtnetlink's verbs: links, bridge ports, addresses, routes."""

import errno
import fcntl
import socket
import struct
import sys
from ipaddress import ip_interface, ip_network

from cni_common.link import (
    IFF_PROMISC,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_EXT_MASK,
    IFLA_IFNAME,
    IFLA_MASTER,
    IFLA_MTU,
    Link,
    VethEnd,
    decode_link,
    encode_bridge,
    encode_link,
    encode_port,
    encode_veth,
    mac_bytes,
)
from cni_common.netlink import (
    HEADER_SIZE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_ECHO,
    NLM_F_EXCL,
    Message,
    NetlinkError,
    attribute,
    attributes,
    number_of,
    string,
    u32,
)
from cni_common.types import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from cni_common.netlink import Channel
    from cni_common.types import Address, Cidr

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/if_bridge.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTM_GETNSID, NSID_NOT_ASSIGNED = 90, -1  # linux/net_namespace.h
RTMGRP_LINK, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x1, 0x100, 0x400
RTEXT_FILTER_SKIP_STATS = 8
IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x02, 0x08, 0x40
RTPROT_BOOT, RTPROT_RA = 3, 9
RTN_UNICAST, RTN_LOCAL = 1, 2
RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RT_TABLE_UNSPEC = 0, 254, 0
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_TABLE = 1, 4, 5, 6, 8, 15
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
_NETNSA_NSID, _NETNSA_FD = 1, 3
_SIOCGIFHWADDR, _SIOCGIFINDEX = 0x8927, 0x8933  # linux/sockios.h
_IFNAMSIZ, _IFREQ_SIZE = 16, 40  # struct ifreq of linux/if.h
_IFADDRMSG, _RTMSG, _RTGENMSG = (
    struct.Struct("=BBBBI"),
    struct.Struct("=8BI"),
    struct.Struct("=B3x"),
)
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_NEW = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK
_NO_STATS = u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)


class Netlink:
    """rtnetlink in one namespace. Absence is None or False; everything else NetlinkError."""

    def __init__(self, channel: "Channel") -> None:
        self.channel = channel

    # --- links ---

    def link(self, name: str) -> Link | None:
        """Return the interface called `name`."""
        return self._get_link(_named(name), f"look up '{name}'")

    def link_at(self, index: int) -> Link | None:
        """Return the interface with this index."""
        return self._get_link(encode_link(_NO_STATS, index=index), f"look up interface {index}")

    def identify(self, name: str) -> tuple[int, str] | None:
        """Return index and MAC of the interface called `name`, without taking the RTNL lock.

        On a busy node each look by netlink queues for it behind every other ADD and DEL.
        """
        request = name.encode("utf-8", "surrogateescape").ljust(_IFREQ_SIZE, bytes(1))
        try:
            index = fcntl.ioctl(self.channel.sock, _SIOCGIFINDEX, request)
            mac = fcntl.ioctl(self.channel.sock, _SIOCGIFHWADDR, request)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise NetlinkError(error.errno or 0, f"look up '{name}': {error.strerror}") from None
        return number_of(index[_IFNAMSIZ : _IFNAMSIZ + 4]), mac[_IFNAMSIZ + 2 : _IFNAMSIZ + 8].hex(
            ":"
        )

    def links(self) -> list[Link]:
        """Return all interfaces."""
        body = encode_link(_NO_STATS)
        return self.channel.dump(
            Message("list interfaces", RTM_GETLINK, NLM_F_DUMP, body, decode_link)
        )

    def nsid(self, fd: int) -> int | None:
        """Return the number by which links here name the namespace `fd`, None: none does."""
        body = _RTGENMSG.pack(0) + u32(_NETNSA_FD, fd)
        message = Message("look up a namespace", RTM_GETNSID, NLM_F_ACK, body, _decode_nsid)
        nsid: int = self.channel.exchange([message])[0][0]
        return None if nsid == NSID_NOT_ASSIGNED else nsid

    def add_bridge(
        self, name: str, *, mac: str, mtu: int = 0, vlan_filtering: bool = False
    ) -> None:
        """Create a bridge, down, with a MAC that no port will change; EEXIST if there is one."""
        body = encode_bridge(name, mac, mtu, vlan_filtering=vlan_filtering)
        self._do(f"create bridge '{name}'", RTM_NEWLINK, body, _NEW)

    def add_veth(self, end: VethEnd, peer: VethEnd, *, master: int = 0) -> Link:
        """Create a veth pair, both ends in their namespaces, `end` up and enslaved; return `end`.

        `peer` is born down: the kernel refuses to set it up before the pair exists (ENOTCONN).
        """
        what = f"create veth pair '{end.name}', '{peer.name}'"
        body = encode_veth(end, peer, u32(IFLA_MASTER, master) if master else b"")
        create = Message(what, RTM_NEWLINK, _NEW | NLM_F_ECHO, body, decode_link)
        found: list[Link | None] = self.channel.exchange([create])[0]
        # Linux 6.2 and newer tell what they have made, and spare a wait for the RTNL lock.
        link = found[0] if found else self.link(end.name)
        if link is None:
            raise NetlinkError(errno.ENODEV, f"{what}: it vanished as soon as it was made")
        return link

    def set_up(self, index: int) -> None:
        """Set the interface up."""
        body = encode_link(index=index, flags=IFF_UP, change=IFF_UP)
        self._do(f"set interface {index} up", RTM_NEWLINK, body)

    def set_down(self, index: int) -> None:
        """Set the interface down."""
        body = encode_link(index=index, flags=0, change=IFF_UP)
        self._do(f"set interface {index} down", RTM_NEWLINK, body)

    def set_promiscuous(self, index: int) -> None:
        """Set IFF_PROMISC."""
        body = encode_link(index=index, flags=IFF_PROMISC, change=IFF_PROMISC)
        self._do(f"set interface {index} promiscuous", RTM_SETLINK, body)

    def set_port(self, index: int, *, hairpin: bool, isolated: bool) -> None:
        """Set a bridge port's flags."""
        body = encode_port(index, hairpin=hairpin, isolated=isolated)
        self._do(f"set port flags of interface {index}", RTM_NEWLINK, body)

    def set_mac(self, index: int, mac: str) -> None:
        """Set the MAC, which for a bridge also means: keep it, whatever ports come and go."""
        body = encode_link(attribute(IFLA_ADDRESS, mac_bytes(mac)), index=index)
        self._do(f"set MAC of interface {index}", RTM_SETLINK, body)

    def set_mtu(self, index: int, mtu: int) -> None:
        """Set the MTU in bytes."""
        body = encode_link(u32(IFLA_MTU, mtu), index=index)
        self._do(f"set MTU of interface {index}", RTM_SETLINK, body)

    def delete_link(self, index: int) -> bool:
        """Delete an interface; False when there was none."""
        try:
            self._do(f"delete interface {index}", RTM_DELLINK, encode_link(index=index))
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    # --- addresses and routes ---

    def addresses(
        self, index: int = 0, versions: "Iterable[int]" = (4, 6)
    ) -> "list[tuple[Cidr, int]]":
        """Return the addresses of an interface (0: of all) with their IFA_F_ flags.

        By IP version, since Linux 6.9 can answer that without the RTNL lock.
        """
        found = []
        for version in versions:
            body = _IFADDRMSG.pack(_FAMILY[version], 0, 0, 0, index)
            message = Message("list addresses", RTM_GETADDR, NLM_F_DUMP, body, _decode_address)
            try:
                answers = self.channel.dump(message)
            except NetlinkError as error:
                if error.errno != errno.ENODEV:  # there is no such interface any more
                    raise
                continue
            # Kernels before 4.20 send those of all interfaces, ones without IPv6 those of IPv4.
            found += [
                (cidr, flags)
                for where, cidr, flags in answers
                if index in (0, where) and cidr.version == version
            ]
        return found

    def add_address(self, index: int, address: "Cidr", *, dad: bool = False) -> None:
        """Add an address; EEXIST when the interface has it. `dad`: IPv6 detects duplicates."""
        self.channel.exchange([address_message(index, address, dad=dad)])

    def delete_address(self, index: int, address: "Cidr") -> None:
        """Delete an address."""
        self._do(f"delete address {address}", RTM_DELADDR, _encode_address(index, address))

    def routes(self, index: int) -> list[Route]:
        """Return the unicast routes over an interface, in every table."""
        return [
            _route(answer)
            for family in _FAMILY.values()
            for answer in self._routes(family)
            if answer.get_attr("RTA_OIF") == index and answer["type"] == RTN_UNICAST
        ]

    def advertised_defaults(self) -> set[int]:
        """Return the interfaces with an IPv6 default route that a router advertised."""
        return {
            answer.get_attr("RTA_OIF")
            for answer in self._routes(socket.AF_INET6)
            if not answer["dst_len"] and answer["proto"] == RTPROT_RA
        }

    def is_local(self, address: "Address") -> bool:
        """Tell whether what comes for `address` would be taken in here."""
        body = _encode_route(
            attribute(_RTA_DST, address.packed), version=address.version, bits=address.max_prefixlen
        )
        what = f"look up route to {address}"
        message = Message(what, RTM_GETROUTE, NLM_F_ACK, body, _decode_route_type)
        try:
            return bool(self.channel.exchange([message])[0][0] == RTN_LOCAL)
        except NetlinkError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                return False
            raise

    def configure(
        self, index: int, addresses: "Sequence[Cidr]", routes: "Sequence[Route]", *, dad: bool
    ) -> None:
        """Add `addresses`, set the interface up and add `routes`, all by one send.

        A look at the interface makes the kernel update its operstate at once (since Linux 6.8).
        """
        up = encode_link(index=index, flags=IFF_UP, change=IFF_UP)
        self.channel.exchange(
            [
                *(address_message(index, address, dad=dad) for address in addresses),
                Message(f"set interface {index} up", RTM_NEWLINK, NLM_F_ACK, up),
                *(route_message(index, route) for route in routes),
                _look_up(encode_link(_NO_STATS, index=index), f"look up interface {index}"),
            ]
        )

    # --- how a request is made ---

    def _do(self, what: str, kind: int, body: bytes, flags: int = NLM_F_ACK) -> None:
        self.channel.exchange([Message(what, kind, flags, body)])

    def _get_link(self, body: bytes, what: str) -> Link | None:
        try:
            found: list[Link] = self.channel.exchange([_look_up(body, what)])[0]
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return found[0]

    def _routes(self, family: int) -> "list[Any]":
        from cni_common.codec import decoder, rtmsg  # noqa: PLC0415 - CHECK reads routes, no ADD

        body = _RTMSG.pack(family, *[0] * 8)
        return self.channel.dump(
            Message("list routes", RTM_GETROUTE, NLM_F_DUMP, body, decoder(rtmsg))
        )


def address_message(index: int, address: "Cidr", *, dad: bool) -> Message:
    """Return the request that adds `address`."""
    body = _encode_address(index, address, IFA_F_NODAD if address.version == 6 and not dad else 0)
    return Message(f"add address {address}", RTM_NEWADDR, _NEW, body)


def route_message(index: int, route: Route) -> Message:
    """Return the request that adds `route` over the interface `index`."""
    table = RT_TABLE_MAIN if route.table is None else route.table
    attrs = [u32(_RTA_OIF, index), u32(_RTA_TABLE, table)]
    if route.dst.prefixlen:
        attrs.append(attribute(_RTA_DST, route.dst.network_address.packed))
    if route.gw is not None:
        attrs.append(attribute(_RTA_GATEWAY, route.gw.packed))
    if route.priority is not None:
        attrs.append(u32(_RTA_PRIORITY, route.priority))
    metrics = ((_RTAX_MTU, route.mtu), (_RTAX_ADVMSS, route.advmss))
    if route.mtu or route.advmss:
        attrs.append(
            attribute(_RTA_METRICS, *(u32(kind, value) for kind, value in metrics if value))
        )
    body = _encode_route(
        *attrs,
        version=route.dst.version,
        bits=route.dst.prefixlen,
        table=table if table < 256 else RT_TABLE_UNSPEC,
        proto=RTPROT_BOOT,
        scope=RT_SCOPE_UNIVERSE if route.scope is None else route.scope,
        kind=RTN_UNICAST,
    )
    gateway = f" via {route.gw}" if route.gw is not None else ""
    flags = NLM_F_CREATE | NLM_F_ACK
    return Message(f"add route {route.dst}{gateway}", RTM_NEWROUTE, flags, body)


def _named(name: str) -> bytes:
    return encode_link(string(IFLA_IFNAME, name), _NO_STATS)


def _look_up(body: bytes, what: str) -> Message:
    return Message(what, RTM_GETLINK, NLM_F_ACK, body, decode_link)


def _decode_nsid(data: bytes) -> int:
    payload = attributes(data, HEADER_SIZE + _RTGENMSG.size)[_NETNSA_NSID]
    return int.from_bytes(payload, sys.byteorder, signed=True)


def _encode_address(index: int, address: "Cidr", flags: int = 0) -> bytes:
    """Return a struct ifaddrmsg with its attributes."""
    version, prefixlen, packed = address.version, address.network.prefixlen, address.packed
    attrs = [attribute(_IFA_LOCAL, packed), attribute(_IFA_ADDRESS, packed)]
    if version == 4 and prefixlen < 31:
        attrs.append(attribute(_IFA_BROADCAST, address.network.broadcast_address.packed))
    return _IFADDRMSG.pack(_FAMILY[version], prefixlen, flags, 0, index) + b"".join(attrs)


def _decode_address(data: bytes) -> "tuple[int, Cidr, int]":
    """Return index, address and IFA_F_ flags of an RTM_NEWADDR."""
    _, prefixlen, flags, _, index = _IFADDRMSG.unpack_from(data, HEADER_SIZE)
    attrs = attributes(data, HEADER_SIZE + _IFADDRMSG.size)
    packed = attrs.get(_IFA_LOCAL) or attrs[_IFA_ADDRESS]
    return index, ip_interface((packed, prefixlen)), number_of(attrs.get(_IFA_FLAGS)) or flags


def _encode_route(
    *attrs: bytes,
    version: int,
    bits: int,
    table: int = 0,
    proto: int = 0,
    scope: int = 0,
    kind: int = 0,
) -> bytes:
    """Return a struct rtmsg with its attributes; `bits`: the destination's prefix length."""
    header = _RTMSG.pack(_FAMILY[version], bits, 0, 0, table, proto, scope, kind, 0)
    return header + b"".join(attrs)


def _decode_route_type(data: bytes) -> int:
    kind: int = _RTMSG.unpack_from(data, HEADER_SIZE)[7]
    return kind


def _route(answer: "Any") -> Route:
    any_address = "0.0.0.0" if answer["family"] == socket.AF_INET else "::"
    dst = answer.get_attr("RTA_DST") or any_address
    gw = answer.get_attr("RTA_GATEWAY")
    metrics = answer.get_attr("RTA_METRICS")
    return Route(
        dst=ip_network(f"{dst}/{answer['dst_len']}"),
        gw=ip_interface(gw).ip if gw else None,
        mtu=metrics.get_attr("RTAX_MTU") if metrics else None,
        advmss=metrics.get_attr("RTAX_ADVMSS") if metrics else None,
        priority=answer.get_attr("RTA_PRIORITY"),
        table=answer.get_attr("RTA_TABLE"),
        scope=answer["scope"],
    )
