"""The VRF in rtnetlink, and what an interface loses when it enters or leaves one.

The kernel takes an interface down and up again on that occasion (drivers/net/vrf.c), by which it
loses its routes, and its IPv6 addresses unless they are kept by keep_addr_on_down.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from cni_common.kernel.link import (
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_MASTER,
    encode_link,
    mac_bytes,
)
from cni_common.kernel.netlink import (
    HEADER_SIZE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    Message,
    NetlinkError,
    attribute,
    string,
    u32,
)
from cni_common.kernel.policy_routing import (
    IFLA_VRF_TABLE,
    RT_TABLE_LOCAL,
    VRF,
    WholeRoute,
    table_of_vrf,
    whole_routes,
)
from cni_common.kernel.route import (
    RT_TABLE_MAIN,
    RTM_GETADDR,
    RTM_NEWADDR,
    RTN_LOCAL,
    RTPROT_KERNEL,
    RTPROT_RA,
    decode_address,
    encode_address_query,
)
from cni_common.kernel.rtnetlink import RTM_NEWLINK, RTM_SETLINK
from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.rtnetlink import Netlink
    from cni_common.spec.names import Address

_IFLA_LINKINFO, _INFO_KIND, _INFO_DATA = 18, 1, 2  # linux/if_link.h


def find(netns: NetNS, name: str) -> tuple[Link, int] | None:
    """Return the VRF of this name and its table, None if no interface has the name.

    Raises CNIError if the interface is no VRF.
    """
    link = netns.netlink.link(name)
    if link is None:
        return None
    if link.kind != VRF:
        raise CNIError(
            Code.INVALID_CONFIG,
            f"'{name}' in '{netns.path}' is no VRF but '{link.kind}'; choose another \"vrfname\"",
        )
    return link, table_of_vrf(netns.netlink, link)


def create(netlink: Netlink, name: str, mac: str, table: int) -> None:
    """Create a VRF, up. Raises CNIError 50 if the kernel has none, NetlinkError."""
    data = attribute(_INFO_DATA, u32(IFLA_VRF_TABLE, table))
    body = encode_link(
        string(IFLA_IFNAME, name),
        attribute(IFLA_ADDRESS, mac_bytes(mac)),
        attribute(_IFLA_LINKINFO, string(_INFO_KIND, VRF), data),
        flags=IFF_UP,
        change=IFF_UP,
    )
    flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK
    try:
        netlink.channel.exchange([Message(f"create vrf '{name}'", RTM_NEWLINK, flags, body)])
    except NetlinkError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE, "the kernel has no VRFs: load the module 'vrf'"
        ) from None


def mac_of(netns: NetNS, name: str) -> str:
    """Return the MAC of the VRFs that this plugin makes: by it they are told from those of others.

    Several attachments share a VRF, and the last must know that it is to be deleted.
    """
    from hashlib import sha256

    digest = sha256(f"vrf {netns.identity} {name}".encode("utf-8", "surrogateescape")).hexdigest()
    return bytes.fromhex(f"02{digest[:10]}").hex(":")


def set_master(netlink: Netlink, index: int, master: int) -> None:
    """Put an interface into the VRF `master`, 0: into none."""
    body = encode_link(u32(IFLA_MASTER, master), index=index)
    what = f"put interface {index} into {f'VRF {master}' if master else 'no VRF'}"
    netlink.channel.exchange([Message(what, RTM_SETLINK, NLM_F_ACK, body)])


def lost_routes(netlink: Netlink, index: int, main: int) -> list[WholeRoute]:
    """Return the routes over an interface that the kernel does not make again by itself.

    `main` is the table that counts as the main one for the interface.
    """

    def is_own(one: WholeRoute) -> bool:
        told = one.told
        dst, table = told.route.dst, told.route.table
        if table == RT_TABLE_LOCAL or told.protocol == RTPROT_RA:
            return True
        link_local = dst.version == 6 and dst.is_link_local
        return table == main and (told.protocol == RTPROT_KERNEL or link_local)

    return [one for one in whole_routes(netlink, index) if not is_own(one)]


def moved(routes: Iterable[WholeRoute], table: int, target: int) -> list[WholeRoute]:
    """Return routes, those of `table` in `target`, those without a gateway first."""
    found = [one.in_table(target) if one.told.route.table == table else one for one in routes]
    return sorted(found, key=lambda one: bool(one.gateways))


def ipv6_addresses(netlink: Netlink, index: int) -> list[bytes]:
    """Return the IPv6 addresses that are not of the link, as struct ifaddrmsg with attributes."""
    query = encode_address_query(index, 6)
    answers = netlink.channel.dump(Message("list addresses", RTM_GETADDR, NLM_F_DUMP, query))
    found = []
    for data in answers:
        where, cidr, _ = decode_address(data)
        # Kernels before 4.20 send those of all interfaces, kernels without IPv6 those of IPv4.
        if where == index and cidr.version == 6 and not cidr.is_link_local:
            found.append(data[HEADER_SIZE:])
    return found


def address_of(body: bytes) -> Address:
    """Return the address in one of `ipv6_addresses`."""
    return decode_address(bytes(HEADER_SIZE) + body)[1].ip


def restore_addresses(
    netlink: Netlink, index: int, addresses: Sequence[bytes], absent: Collection[int] = ()
) -> None:
    """Add those of the addresses again that the interface has lost. Raises NetlinkError.

    An errno in `absent` is no failure.
    """
    present = {address_of(body) for body in ipv6_addresses(netlink, index)}
    messages = [
        Message(f"add address {address_of(body)}", RTM_NEWADDR, NLM_F_CREATE | NLM_F_ACK, body)
        for body in addresses
        if address_of(body) not in present
    ]
    netlink.channel.exchange(messages, absent=absent)


def are_usable(netlink: Netlink, addresses: Collection[Address], table: int) -> bool:
    """Tell whether packets for these addresses are local in `table`: the kernel uses them."""
    there = {
        one.route.dst.network_address
        for one in netlink.all_routes(6)
        if one.type == RTN_LOCAL and one.route.table == table
    }
    return there >= set(addresses)


def sources(routes: Iterable[WholeRoute]) -> list[Address]:
    """Return the IPv6 addresses that routes name as their source: these must be usable before."""
    found = (one.source for one in routes)
    return [address for address in found if address and address.version == 6]


def local_table(table: int) -> int:
    """Return the table of local addresses that goes with `table`."""
    return RT_TABLE_LOCAL if table == RT_TABLE_MAIN else table
