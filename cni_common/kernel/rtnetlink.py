"""Operations of rtnetlink: links, bridge ports, addresses, routes (rtnetlink(7))."""

from __future__ import annotations

import errno
import fcntl
import struct
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from cni_common.kernel.link import (
    IFF_PROMISC,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_EXT_MASK,
    IFLA_GROUP,
    IFLA_IFNAME,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_TARGET_NETNSID,
    IFLA_TXQLEN,
    Link,
    VethEnd,
    decode_info,
    decode_link,
    encode_bridge,
    encode_device,
    encode_link,
    encode_port,
    encode_veth,
    mac_bytes,
)
from cni_common.kernel.netlink import (
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
from cni_common.kernel.route import (
    FAMILY,
    IFA_F_NOPREFIXROUTE,
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTN_LOCAL,
    RTN_UNICAST,
    RTPROT_RA,
    address_message,
    decode_address,
    decode_lookup,
    decode_route,
    encode_address,
    encode_address_query,
    encode_route_lookup,
    encode_route_query,
    route_message,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cni_common.kernel.netlink import Channel
    from cni_common.kernel.route import KernelRoute
    from cni_common.spec.names import Address, Cidr
    from cni_common.spec.result import Route

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/if_bridge.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_GETNSID, NSID_NOT_ASSIGNED = 90, -1  # linux/net_namespace.h
RTMGRP_LINK, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x1, 0x100, 0x400
RTEXT_FILTER_SKIP_STATS = 8
_NETNSA_NSID, _NETNSA_FD = 1, 3
_SIOCGIFNAME, _SIOCGIFHWADDR, _SIOCGIFINDEX = 0x8910, 0x8927, 0x8933  # linux/sockios.h
_IFNAMSIZ, _IFREQ_SIZE = 16, 40  # struct ifreq of linux/if.h
_RTGENMSG = struct.Struct("=B3x")
# Errors for no route, or for a route of kind unreachable, blackhole or prohibit.
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES)
_NEW = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK
_NO_STATS = u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)


class Netlink:
    """rtnetlink in one namespace. Absence is None or False; other failures raise NetlinkError."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    # --- links ---

    def link(self, name: str) -> Link | None:
        """Return the interface called `name`, None if there is none."""
        return self._get_link(_named(name), f"look up '{name}'")

    def link_at(self, index: int) -> Link | None:
        """Return the interface with this index, None if there is none."""
        return self._get_link(encode_link(_NO_STATS, index=index), f"look up interface {index}")

    def links_at(self, indices: Sequence[int]) -> list[Link | None]:
        """Return the interfaces with these indices, by one send."""
        bodies = [(encode_link(_NO_STATS, index=index), index) for index in indices]
        messages = [_look_up(body, f"look up interface {index}") for body, index in bodies]
        try:
            return [found[0] for found in self.channel.exchange(messages)]
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
        return [self.link_at(index) for index in indices]

    def info(self, index: int) -> dict[int, bytes]:
        """Return the attributes of its kind (IFLA_INFO_DATA) of an interface that must exist."""
        body = encode_link(_NO_STATS, index=index)
        what = f"look up interface {index}"
        message = Message(what, RTM_GETLINK, NLM_F_ACK, body, decode_info)
        found: dict[int, bytes] = self.channel.exchange([message])[0][0]
        return found

    def identify(self, name: str) -> tuple[int, str] | None:
        """Return index and MAC of the interface called `name`, without the RTNL lock.

        Uses ioctl: on a busy node a netlink request queues for that lock behind all ADDs and DELs.
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

    def name_of(self, index: int) -> str:
        """Return the name of the interface with this index, "" if there is none; as `identify`."""
        request = (bytes(_IFNAMSIZ) + index.to_bytes(4, sys.byteorder)).ljust(_IFREQ_SIZE, bytes(1))
        try:
            name = fcntl.ioctl(self.channel.sock, _SIOCGIFNAME, request)[:_IFNAMSIZ]
        except OSError as error:
            if error.errno == errno.ENODEV:
                return ""
            what = f"look up interface {index}"
            raise NetlinkError(error.errno or 0, f"{what}: {error.strerror}") from None
        return name.partition(bytes(1))[0].decode("utf-8", "surrogateescape")

    def links(self) -> list[Link]:
        """Return all interfaces."""
        body = encode_link(_NO_STATS)
        return self.channel.dump(
            Message("list interfaces", RTM_GETLINK, NLM_F_DUMP, body, decode_link)
        )

    def nsid(self, fd: int) -> int | None:
        """Return the nsid of the namespace `fd` in this one, None if it has none (RTM_GETNSID)."""
        body = _RTGENMSG.pack(0) + u32(_NETNSA_FD, fd)
        message = Message("look up a namespace", RTM_GETNSID, NLM_F_ACK, body, _decode_nsid)
        nsid: int = self.channel.exchange([message])[0][0]
        return None if nsid == NSID_NOT_ASSIGNED else nsid

    def has_peer(self, link: Link) -> bool:
        """Tell whether the other end of a veth is in a namespace that still has users.

        The kernel removes the pair some time after the last user of the namespace has gone. Until
        then `link` exists, but its other end cannot be queried any more.
        """
        if link.peer_nsid is None:
            return True  # in this namespace
        if link.peer_nsid == NSID_NOT_ASSIGNED:
            return False
        body = encode_link(_NO_STATS, _s32(IFLA_TARGET_NETNSID, link.peer_nsid), index=link.peer)
        try:
            self.channel.exchange([_look_up(body, f"look up the other end of '{link.name}'")])
        except NetlinkError as error:
            if error.errno in (errno.EINVAL, errno.ENODEV):
                return False
            if error.errno not in (errno.EPERM, errno.EACCES):
                raise
        return True

    def add_bridge(
        self, name: str, *, mac: str, mtu: int = 0, vlan_filtering: bool = False
    ) -> None:
        """Create a bridge, down, with a fixed MAC. NetlinkError EEXIST if the name exists."""
        body = encode_bridge(name, mac, mtu, vlan_filtering=vlan_filtering)
        self._do(f"create bridge '{name}'", RTM_NEWLINK, body, _NEW)

    def add_veth(self, end: VethEnd, peer: VethEnd, *, master: int = 0) -> Link:
        """Create a veth pair, both ends in their namespaces, `end` up and enslaved; return `end`.

        `peer` is created down: the kernel refuses to set it up before the pair exists (ENOTCONN).
        """
        what = f"create veth pair '{end.name}', '{peer.name}'"
        body = encode_veth(end, peer, u32(IFLA_MASTER, master) if master else b"")
        create = Message(what, RTM_NEWLINK, _NEW | NLM_F_ECHO, body, decode_link)
        found: list[Link | None] = self.channel.exchange([create])[0]
        # Linux 6.2 and newer echo the new link, which saves a wait for the RTNL lock.
        link = found[0] if found else self.link(end.name)
        if link is None:
            raise NetlinkError(errno.ENODEV, f"{what}: it vanished as soon as it was made")
        return link

    def add_device(self, end: VethEnd, kind: str, *data: bytes, parent: int = 0) -> None:
        """Create an interface of `kind`, down, in its namespace and under its final name.

        `data` are attributes of that kind; `parent` is the index, in this namespace, of the
        interface below. NetlinkError EEXIST if the name exists. The kernel echoes nothing here:
        its answer would go to the other namespace.
        """
        body = encode_device(end, kind, *data, parent=parent)
        self._do(f"create {kind} '{end.name}'", RTM_NEWLINK, body, _NEW)

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
        self.set_flag(index, IFF_PROMISC, on=True)

    def set_flag(self, index: int, flag: int, *, on: bool) -> None:
        """Set or clear one of IFF_PROMISC and IFF_ALLMULTI."""
        body = encode_link(index=index, flags=flag if on else 0, change=flag)
        what = "promiscuous" if flag == IFF_PROMISC else "to all multicast"
        self._do(f"set interface {index} {what}{'' if on else ' no more'}", RTM_SETLINK, body)

    def set_tx_queue(self, index: int, packets: int) -> None:
        """Set the length of the transmit queue, in packets."""
        body = encode_link(u32(IFLA_TXQLEN, packets), index=index)
        self._do(f"set transmit queue of interface {index}", RTM_SETLINK, body)

    def set_port(self, index: int, *, hairpin: bool, isolated: bool) -> None:
        """Set a bridge port's flags."""
        body = encode_port(index, hairpin=hairpin, isolated=isolated)
        self._do(f"set port flags of interface {index}", RTM_NEWLINK, body)

    def set_mac(self, index: int, mac: str) -> None:
        """Set the MAC. A bridge then keeps it when ports come and go."""
        body = encode_link(attribute(IFLA_ADDRESS, mac_bytes(mac)), index=index)
        self._do(f"set MAC of interface {index}", RTM_SETLINK, body)

    def set_mtu(self, index: int, mtu: int) -> None:
        """Set the MTU in bytes."""
        body = encode_link(u32(IFLA_MTU, mtu), index=index)
        self._do(f"set MTU of interface {index}", RTM_SETLINK, body)

    def set_master(self, index: int, master: int) -> None:
        """Make an interface a port of the bridge, bond or the like with the index `master`."""
        body = encode_link(u32(IFLA_MASTER, master), index=index)
        self._do(f"set master of interface {index}", RTM_SETLINK, body)

    def delete_link(self, index: int) -> bool:
        """Delete an interface; return False if there was none."""
        try:
            self.channel.exchange([link_deletion(index)])
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def delete_group(self, group: int, index: int) -> bool:
        """Move an interface into `group` and delete the whole group, by one send.

        Return False if the interface was gone, or if the group was empty: another request has
        deleted it.
        """
        mark = encode_link(u32(IFLA_GROUP, group), index=index)
        members = encode_link(u32(IFLA_GROUP, group))
        try:
            self.channel.exchange(
                [
                    Message(f"set group of interface {index}", RTM_SETLINK, NLM_F_ACK, mark),
                    Message(f"delete interface {index}", RTM_DELLINK, NLM_F_ACK, members),
                ]
            )
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    # --- addresses and routes ---

    def addresses(self, index: int = 0, versions: Iterable[int] = (4, 6)) -> list[tuple[Cidr, int]]:
        """Return the addresses of an interface (0: of all) with their IFA_F_ flags.

        One request per IP version, since Linux 6.9 answers that without the RTNL lock.
        """
        found = []
        for version in versions:
            body = encode_address_query(index, version)
            message = Message("list addresses", RTM_GETADDR, NLM_F_DUMP, body, decode_address)
            try:
                answers = self.channel.dump(message)
            except NetlinkError as error:
                if error.errno != errno.ENODEV:  # the interface is gone
                    raise
                continue
            # Kernels before 4.20 send those of all interfaces, kernels without IPv6 those of IPv4.
            found += [
                (cidr, flags)
                for where, cidr, flags in answers
                if index in (0, where) and cidr.version == version
            ]
        return found

    def addresses_beside(self, indices: Collection[int]) -> set[Address]:
        """Return the addresses of all interfaces but some, without those of a link (fe80::)."""
        found: set[Address] = set()
        for version in (4, 6):
            query = encode_address_query(0, version)
            message = Message("list addresses", RTM_GETADDR, NLM_F_DUMP, query, decode_address)
            found.update(
                cidr.ip
                for where, cidr, _ in self.channel.dump(message)
                if where not in indices and not (cidr.version == 6 and cidr.is_link_local)
            )
        return found

    def sample_addresses(self, found: set[Address], *, until: float, at_most: int) -> str:
        """Add the addresses of all interfaces to `found`, as Channel.sample does."""
        problem = ""
        for version in (4, 6):
            query = encode_address_query(0, version)
            message = Message("list addresses", RTM_GETADDR, NLM_F_DUMP, query, _address_of)
            sampled = self.channel.sample(message, found, until=until, at_most=at_most)
            problem = problem or sampled
        return problem

    def add_address(self, index: int, address: Cidr, *, dad: bool = False) -> None:
        """Add an address. NetlinkError EEXIST if the interface has it. `dad`: detect duplicates."""
        self.channel.exchange([address_message(index, address, dad=dad)])

    def delete_address(self, index: int, address: Cidr) -> None:
        """Delete an address."""
        self._do(f"delete address {address}", RTM_DELADDR, encode_address(index, address))

    def routes(self, index: int) -> list[Route]:
        """Return the unicast routes over an interface, in every table.

        One with several next hops counts as one route for each that uses the interface.
        """
        everything = [found for version in FAMILY for found in self.all_routes(version)]
        return [
            replace(found.route, gw=gateway) if found.hops else found.route
            for found in everything
            for gateway, where in found.hops or [(None, found.interface)]
            if where == index and found.type == RTN_UNICAST
        ]

    def all_routes(self, version: int) -> list[KernelRoute]:
        """Return the routes of an IP version, of every kind and in every table."""
        body = encode_route_query(FAMILY[version])
        message = Message("list routes", RTM_GETROUTE, NLM_F_DUMP, body, decode_route)
        answers: list[KernelRoute | None] = self.channel.dump(message)
        # Kernels without IPv6 answer with the routes of all their families.
        return [one for one in answers if one and one.route.dst.version == version]

    def advertised_defaults(self) -> set[int]:
        """Return the interfaces with an IPv6 default route that a router advertised."""
        return {
            found.interface
            for found in self.all_routes(6)
            if not found.route.dst.prefixlen and found.protocol == RTPROT_RA and found.interface
        }

    def is_local(self, address: Address) -> bool:
        """Tell whether the namespace would accept packets for `address` as local."""
        return self.route_to(address)[0] == RTN_LOCAL

    def route_to(
        self, address: Address, *, source: Address | None = None, vrf: int = 0
    ) -> tuple[int, int]:
        """Return kind (RTN_*) and interface index of the route that a packet to `address` takes.

        `source`: the packet's own address; `vrf`: index of the VRF that sends it. Return (0, 0) if
        there is no route.
        """
        body = encode_route_lookup(address, source, vrf)
        what = f"look up route to {address}"
        message = Message(what, RTM_GETROUTE, NLM_F_ACK, body, decode_lookup)
        try:
            route: tuple[int, int] = self.channel.exchange([message])[0][0]
        except NetlinkError as error:
            if error.errno in _NO_ROUTE:
                return 0, 0
            raise
        return route

    def neighbour_over(self, address: Address) -> int:
        """Return the index of the interface on whose link an address is; 0: on none, or local."""
        what = f"look up the link of {address}"
        body = encode_route_lookup(address, None, 0)
        message = Message(what, RTM_GETROUTE, NLM_F_ACK, body, decode_route)
        try:
            (found,) = self.channel.exchange([message])[0]
        except NetlinkError as error:
            if error.errno in _NO_ROUTE:
                return 0
            raise
        is_near = found and found.type == RTN_UNICAST and found.route.gw is None
        return found.interface if is_near else 0

    def configure(
        self,
        index: int,
        addresses: Sequence[Cidr],
        routes: Sequence[Route],
        *,
        dad: bool,
        subnet_routes: Sequence[Message] | None = None,
    ) -> None:
        """Add `addresses`, set the interface up and add `routes`, all by one send.

        `subnet_routes`: routes to the addresses' subnets, instead of those that the kernel makes. A
        request for the interface makes the kernel update its operstate at once (since Linux 6.8).
        """
        up = encode_link(index=index, flags=IFF_UP, change=IFF_UP)
        flags = 0 if subnet_routes is None else IFA_F_NOPREFIXROUTE
        what = f"look up interface {index}"
        self.channel.exchange(
            [
                *(address_message(index, one, dad=dad, flags=flags) for one in addresses),
                Message(f"set interface {index} up", RTM_NEWLINK, NLM_F_ACK, up),
                *(subnet_routes or ()),
                *(route_message(index, route) for route in routes),
                # Answered for its effect, so not decoded.
                Message(what, RTM_GETLINK, NLM_F_ACK, encode_link(_NO_STATS, index=index)),
            ]
        )

    # --- requests ---

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


def link_deletion(index: int) -> Message:
    """Return the request that deletes an interface."""
    return Message(f"delete interface {index}", RTM_DELLINK, NLM_F_ACK, encode_link(index=index))


def _named(name: str) -> bytes:
    return encode_link(string(IFLA_IFNAME, name), _NO_STATS)


def _look_up(body: bytes, what: str) -> Message:
    return Message(what, RTM_GETLINK, NLM_F_ACK, body, decode_link)


def _address_of(data: bytes) -> Address:
    return decode_address(data)[1].ip


def _s32(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(4, sys.byteorder, signed=True))


def _decode_nsid(data: bytes) -> int:
    payload = attributes(data, HEADER_SIZE + _RTGENMSG.size)[_NETNSA_NSID]
    return int.from_bytes(payload, sys.byteorder, signed=True)
