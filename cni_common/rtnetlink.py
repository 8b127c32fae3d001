"""rtnetlink's verbs: links, bridge ports, addresses, routes."""

import errno
import os
import socket
from ipaddress import ip_interface, ip_network

from cni_common.link import IFF_PROMISC, IFF_UP, Link, LinkMessage, VethEnd, decode_link
from cni_common.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    Message,
    NetlinkError,
    ifaddrmsg,
    nlmsg,
    rtmsg,
)
from cni_common.types import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
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


class _Nsid(nlmsg):  # type: ignore[misc]  # pyroute2 is not typed
    """struct rtgenmsg with the attributes of RTM_GETNSID."""

    fields = (("rtgen_family", "B"), ("pad", "3x"))
    nla_map = (("NONE", "none"), ("NSID", "int32"), ("PID", "uint32"), ("FD", "uint32"))


class Netlink:
    """rtnetlink in one namespace. Absence is None or False; everything else NetlinkError."""

    def __init__(self, channel: "Channel") -> None:
        self.channel = channel

    # --- links ---

    def link(self, name: str) -> Link | None:
        """Return the interface called `name`."""
        return self._get_link({"attrs": [("IFLA_IFNAME", name)]}, f"look up '{name}'")

    def link_at(self, index: int) -> Link | None:
        """Return the interface with this index."""
        return self._get_link({"index": index}, f"look up interface {index}")

    def links(self) -> list[Link]:
        """Return all interfaces."""
        attrs = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
        body = body_of(LinkMessage, attrs=attrs)
        message = Message("list interfaces", RTM_GETLINK, NLM_F_DUMP, body, decode_link)
        return self.channel.dump(message)

    def nsid(self, fd: int) -> int | None:
        """Return the number by which links here name the namespace `fd`, None: none does."""
        message = Message("look up a namespace", RTM_GETNSID, NLM_F_ACK, body_of(_Nsid))
        message.body["attrs"] = [("FD", fd)]
        nsid = self.channel.exchange([message])[0][0].get_attr("NSID")
        return None if nsid == NSID_NOT_ASSIGNED else int(nsid)

    def add_bridge(
        self, name: str, *, mac: str, mtu: int = 0, vlan_filtering: bool = False
    ) -> None:
        """Create a bridge, down, with a MAC that no port will change; EEXIST if there is one."""
        data = [("IFLA_BR_VLAN_FILTERING", 1)] if vlan_filtering else []
        attrs: list[Any] = [("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac)]
        if mtu:
            attrs.append(("IFLA_MTU", mtu))
        attrs.append(_linkinfo("bridge", data))
        self._do(f"create bridge '{name}'", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, attrs=attrs)

    def add_veth(self, end: VethEnd, peer: VethEnd, *, master: int = 0) -> None:
        """Create a veth pair by one message, both ends in their namespaces, `end` up and enslaved.

        `peer` is born down: the kernel refuses to set it up before the pair exists (ENOTCONN).
        """
        body = body_of(LinkMessage, flags=IFF_UP, change=IFF_UP)
        peer_data = {"attrs": peer.attributes()}
        body["attrs"] = end.attributes()
        if master:
            body["attrs"].append(("IFLA_MASTER", master))
        body["attrs"].append(_linkinfo("veth", [("VETH_INFO_PEER", peer_data)]))
        what = f"create veth pair '{end.name}', '{peer.name}'"
        flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK
        self.channel.exchange([Message(what, RTM_NEWLINK, flags, body)])

    def set_up(self, index: int) -> None:
        """Set the interface up."""
        self._do(f"set interface {index} up", RTM_NEWLINK, index=index, flags=IFF_UP, change=IFF_UP)

    def set_down(self, index: int) -> None:
        """Set the interface down."""
        self._do(f"set interface {index} down", RTM_NEWLINK, index=index, flags=0, change=IFF_UP)

    def set_promiscuous(self, index: int) -> None:
        """Set IFF_PROMISC."""
        self._do(
            f"set interface {index} promiscuous",
            RTM_SETLINK,
            index=index,
            flags=IFF_PROMISC,
            change=IFF_PROMISC,
        )

    def set_port(self, index: int, *, hairpin: bool, isolated: bool) -> None:
        """Set a bridge port's flags."""
        data = [("IFLA_BRPORT_MODE", int(hairpin)), ("IFLA_BRPORT_ISOLATED", int(isolated))]
        info = [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", {"attrs": data})]
        self._do(
            f"set port flags of interface {index}",
            RTM_NEWLINK,
            index=index,
            attrs=[("IFLA_LINKINFO", {"attrs": info})],
        )

    def set_mac(self, index: int, mac: str) -> None:
        """Set the MAC, which for a bridge also means: keep it, whatever ports come and go."""
        what = f"set MAC of interface {index}"
        self._do(what, RTM_SETLINK, index=index, attrs=[("IFLA_ADDRESS", mac)])

    def set_mtu(self, index: int, mtu: int) -> None:
        """Set the MTU in bytes."""
        self._do(
            f"set MTU of interface {index}", RTM_SETLINK, index=index, attrs=[("IFLA_MTU", mtu)]
        )

    def delete_link(self, index: int) -> bool:
        """Delete an interface; False when there was none."""
        try:
            self._do(f"delete interface {index}", RTM_DELLINK, index=index)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def delete_links(self, indexes: "Sequence[int]") -> "list[bool]":
        """Delete several interfaces by one message; tell of each whether it was there."""
        if len(indexes) == 1:
            return [self.delete_link(indexes[0])]
        # A random one: whatever else is in the group would go as well. People use small numbers.
        group = int.from_bytes(os.urandom(4)) | 1 << 30
        found = [self._set_group(index, group) for index in indexes]
        try:
            self._do("delete interfaces", RTM_DELLINK, attrs=[("IFLA_GROUP", group)])
        except NetlinkError as error:
            if error.errno != errno.ENODEV:  # they went with their namespaces meanwhile
                raise
        return found

    def _set_group(self, index: int, group: int) -> bool:
        """Put an interface into a group (ip-link(8)); False when there is none."""
        try:
            what = f"set group of interface {index}"
            self._do(what, RTM_SETLINK, index=index, attrs=[("IFLA_GROUP", group)])
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    # --- addresses and routes ---

    def addresses(self, index: int = 0) -> "list[tuple[Cidr, int]]":
        """Return the addresses of an interface (0: of all) with their IFA_F_ flags."""
        body = body_of(ifaddrmsg, index=index)
        message = Message("list addresses", RTM_GETADDR, NLM_F_DUMP, body)
        found = []
        for answer in self.channel.dump(message):
            if index in (0, answer["index"]):
                text = answer.get_attr("IFA_LOCAL") or answer.get_attr("IFA_ADDRESS")
                cidr = ip_interface(f"{text}/{answer['prefixlen']}")
                found.append((cidr, answer.get_attr("IFA_FLAGS") or answer["flags"]))
        return found

    def add_address(self, index: int, address: "Cidr", *, dad: bool = False) -> None:
        """Add an address; EEXIST when the interface has it. `dad`: IPv6 detects duplicates."""
        self.channel.exchange([address_message(index, address, dad=dad)])

    def delete_address(self, index: int, address: "Cidr") -> None:
        """Delete an address."""
        body = _address_body(index, address)
        what = f"delete address {address}"
        self.channel.exchange([Message(what, RTM_DELADDR, NLM_F_ACK, body)])

    def routes(self, index: int) -> list[Route]:
        """Return the unicast routes over an interface, in every table."""
        routes = []
        for family in (socket.AF_INET, socket.AF_INET6):
            message = Message(
                "list routes", RTM_GETROUTE, NLM_F_DUMP, body_of(rtmsg, family=family)
            )
            routes += [
                _route(answer)
                for answer in self.channel.dump(message)
                if answer.get_attr("RTA_OIF") == index and answer["type"] == RTN_UNICAST
            ]
        return routes

    def advertised_defaults(self) -> set[int]:
        """Return the interfaces with an IPv6 default route that a router advertised."""
        body = body_of(rtmsg, family=socket.AF_INET6)
        return {
            answer.get_attr("RTA_OIF")
            for answer in self.channel.dump(Message("list routes", RTM_GETROUTE, NLM_F_DUMP, body))
            if not answer["dst_len"] and answer["proto"] == RTPROT_RA
        }

    def is_local(self, address: "Address") -> bool:
        """Tell whether what comes for `address` would be taken in here."""
        family, bits = (socket.AF_INET, 32) if address.version == 4 else (socket.AF_INET6, 128)
        body = body_of(rtmsg, family=family, dst_len=bits, attrs=[("RTA_DST", str(address))])
        message = Message(f"look up route to {address}", RTM_GETROUTE, NLM_F_ACK, body)
        try:
            return bool(self.channel.exchange([message])[0][0]["type"] == RTN_LOCAL)
        except NetlinkError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                return False
            raise

    def configure(
        self, index: int, addresses: "Sequence[Cidr]", routes: "Sequence[Route]", *, dad: bool
    ) -> None:
        """Add `addresses`, set the interface up and add `routes`, all by one send."""
        up = body_of(LinkMessage, index=index, flags=IFF_UP, change=IFF_UP)
        self.channel.exchange(
            [
                *(address_message(index, address, dad=dad) for address in addresses),
                Message(f"set interface {index} up", RTM_NEWLINK, NLM_F_ACK, up),
                *(route_message(index, route) for route in routes),
            ]
        )

    # --- how a request is made ---

    def _do(self, what: str, kind: int, more_flags: int = 0, **fields: "Any") -> None:
        body = body_of(LinkMessage, **fields)
        self.channel.exchange([Message(what, kind, NLM_F_ACK | more_flags, body)])

    def _get_link(self, fields: "dict[str, Any]", what: str) -> Link | None:
        body = body_of(LinkMessage, **fields)
        body["attrs"] = [*body["attrs"], ("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
        try:
            message = Message(what, RTM_GETLINK, NLM_F_ACK, body, decode_link)
            found: list[Link] = self.channel.exchange([message])[0]
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return found[0]


def address_message(index: int, address: "Cidr", *, dad: bool) -> Message:
    """Return the request that adds `address`."""
    flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK
    return Message(f"add address {address}", RTM_NEWADDR, flags, _address_body(index, address, dad))


def route_message(index: int, route: Route) -> Message:
    """Return the request that adds `route` over the interface `index`."""
    family = socket.AF_INET if route.dst.version == 4 else socket.AF_INET6
    table = RT_TABLE_MAIN if route.table is None else route.table
    attrs: list[tuple[str, Any]] = [("RTA_OIF", index), ("RTA_TABLE", table)]
    if route.dst.prefixlen:
        attrs.append(("RTA_DST", str(route.dst.network_address)))
    if route.gw is not None:
        attrs.append(("RTA_GATEWAY", str(route.gw)))
    if route.priority is not None:
        attrs.append(("RTA_PRIORITY", route.priority))
    metrics = [("RTAX_MTU", route.mtu), ("RTAX_ADVMSS", route.advmss)]
    metrics = [(name, value) for name, value in metrics if value]
    if metrics:
        attrs.append(("RTA_METRICS", {"attrs": metrics}))
    body = body_of(
        rtmsg,
        family=family,
        dst_len=route.dst.prefixlen,
        table=table if table < 256 else RT_TABLE_UNSPEC,
        proto=RTPROT_BOOT,
        scope=RT_SCOPE_UNIVERSE if route.scope is None else route.scope,
        type=RTN_UNICAST,
        attrs=attrs,
    )
    flags = NLM_F_CREATE | NLM_F_ACK
    gateway = f" via {route.gw}" if route.gw is not None else ""
    return Message(f"add route {route.dst}{gateway}", RTM_NEWROUTE, flags, body)


def body_of(kind: "type[nlmsg]", *, attrs: "Sequence[Any]" = (), **fields: object) -> nlmsg:
    """Return a message body with these fields and attributes."""
    body = kind()
    for name, value in fields.items():
        body[name] = value
    body["attrs"] = list(attrs)
    return body


def _address_body(index: int, address: "Cidr", dad: bool = True) -> nlmsg:  # noqa: FBT001, FBT002
    attrs = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
    if address.version == 4 and address.network.prefixlen < 31:
        attrs.append(("IFA_BROADCAST", str(address.network.broadcast_address)))
    return body_of(
        ifaddrmsg,
        family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
        prefixlen=address.network.prefixlen,
        flags=IFA_F_NODAD if address.version == 6 and not dad else 0,
        index=index,
        attrs=attrs,
    )


def _linkinfo(kind: str, data: "list[tuple[str, Any]]") -> "tuple[str, Any]":
    attrs: list[tuple[str, Any]] = [("IFLA_INFO_KIND", kind)]
    if data:
        attrs.append(("IFLA_INFO_DATA", {"attrs": data}))
    return ("IFLA_LINKINFO", {"attrs": attrs})


def _route(answer: nlmsg) -> Route:
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
