"""The attributes of a network interface, and their rtnetlink encoding (linux/if_link.h)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cni_common.kernel.netlink import (
    HEADER_SIZE,
    attribute,
    attributes,
    chosen_attributes,
    number_of,
    string,
    string_of,
    u32,
)

# linux/if.h
IFF_UP, IFF_NOARP, IFF_PROMISC, IFF_ALLMULTI, IFF_LOWER_UP = 0x1, 0x80, 0x100, 0x200, 0x10000
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_TXQLEN, IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_NET_NS_FD = 13, 16, 18, 26, 28
IFLA_GROUP, IFLA_EXT_MASK, IFLA_PROMISCUITY, IFLA_LINK_NETNSID = 27, 29, 30, 37
IFLA_TARGET_NETNSID = 46
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BR_VLAN_FILTERING, IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 7, 4, 33
VETH_INFO_PEER = 1  # linux/veth.h
_IFINFOMSG, _NSID = struct.Struct("=BxHiII"), struct.Struct("=i")
# The attributes of a Link, of its kind, of a bridge, and of a port.
_OF_LINK = frozenset(
    (
        *(IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_TXQLEN),
        *(IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_PROMISCUITY, IFLA_LINK_NETNSID),
    )
)
_OF_KIND = frozenset(
    (IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA),
)
_OF_BRIDGE = frozenset((IFLA_BR_VLAN_FILTERING,))
_OF_PORT = frozenset((IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED))
_OPERSTATES = ("UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP")


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as the kernel describes it."""

    index: int
    name: str
    kind: str  # IFLA_INFO_KIND, such as "veth"; "" for physical interfaces and lo
    mac: str
    mtu: int
    master: int  # index, 0 = none
    flags: int  # IFF_*
    operstate: str  # "UP", "DOWN", "LOWERLAYERDOWN", …
    peer: int  # IFLA_LINK: index of a veth's other end, or of the master, in `peer_nsid`
    peer_nsid: int | None
    promiscuity: int
    tx_queue: int  # packets
    vlan_filtering: bool
    hairpin: bool
    isolated: bool

    @property
    def up(self) -> bool:
        """Whether the interface is administratively up (IFF_UP)."""
        return bool(self.flags & IFF_UP)


@dataclass(frozen=True, slots=True)
class VethEnd:
    """One end of a new veth pair, or another new interface in a container.

    `netns` is the descriptor of its namespace, -1 = the socket's.
    """

    name: str
    mac: str  # "" = the kernel's choice
    mtu: int = 0  # bytes, 0 = the kernel's default
    netns: int = -1

    def encode(self) -> bytes:
        """Return the rtnetlink attributes that describe this end."""
        return b"".join(
            (
                string(IFLA_IFNAME, self.name),
                attribute(IFLA_ADDRESS, mac_bytes(self.mac)) if self.mac else b"",
                u32(IFLA_MTU, self.mtu) if self.mtu else b"",
                u32(IFLA_NET_NS_FD, self.netns) if self.netns >= 0 else b"",
            )
        )


def encode_link(
    *attrs: bytes, family: int = 0, index: int = 0, flags: int = 0, change: int = 0
) -> bytes:
    """Return a struct ifinfomsg with its attributes; `change` is the mask of `flags`."""
    return _IFINFOMSG.pack(family, 0, index, flags, change) + b"".join(attrs)


def encode_veth(end: VethEnd, peer: VethEnd, *more: bytes) -> bytes:
    """Return the description of a new veth pair, `end` up, with more attributes for `end`.

    `peer` is created down: the kernel refuses to set it up before the pair exists (ENOTCONN).
    """
    other = attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, encode_link(peer.encode())))
    info = attribute(IFLA_LINKINFO, string(IFLA_INFO_KIND, "veth"), other)
    return encode_link(end.encode(), *more, info, flags=IFF_UP, change=IFF_UP)


def encode_bridge(name: str, mac: str, mtu: int, *, vlan_filtering: bool) -> bytes:
    """Return the description of a new bridge; `mtu` in bytes, 0 = the kernel's default."""
    info = string(IFLA_INFO_KIND, "bridge")
    if vlan_filtering:
        info += attribute(IFLA_INFO_DATA, attribute(IFLA_BR_VLAN_FILTERING, bytes([1])))
    return encode_link(
        string(IFLA_IFNAME, name),
        attribute(IFLA_ADDRESS, mac_bytes(mac)),
        u32(IFLA_MTU, mtu) if mtu else b"",
        attribute(IFLA_LINKINFO, info),
    )


def encode_device(end: VethEnd, kind: str, *data: bytes, parent: int = 0) -> bytes:
    """Return the description of a new interface `end`, down, of the IFLA_INFO_KIND `kind`.

    `data` are attributes of that kind; `parent` is the index of the interface below it.
    """
    info = string(IFLA_INFO_KIND, kind) + (attribute(IFLA_INFO_DATA, *data) if data else b"")
    below = u32(IFLA_LINK, parent) if parent else b""
    return encode_link(end.encode(), below, attribute(IFLA_LINKINFO, info))


def encode_port(index: int, *, hairpin: bool, isolated: bool) -> bytes:
    """Return the description of a bridge port's flags."""
    data = attribute(
        IFLA_INFO_SLAVE_DATA,
        attribute(IFLA_BRPORT_MODE, bytes([hairpin])),
        attribute(IFLA_BRPORT_ISOLATED, bytes([isolated])),
    )
    info = attribute(IFLA_LINKINFO, string(IFLA_INFO_SLAVE_KIND, "bridge"), data)
    return encode_link(info, index=index)


def decode_link(data: bytes) -> Link:
    """Return the link that an RTM_NEWLINK describes.

    Decoded by hand: 13 of its 60 attributes matter, and every ADD decodes links.
    """
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(data, HEADER_SIZE)
    attrs = chosen_attributes(data, HEADER_SIZE + _IFINFOMSG.size, _OF_LINK)
    info = chosen_attributes(attrs.get(IFLA_LINKINFO, b""), 0, _OF_KIND)
    kind = string_of(info.get(IFLA_INFO_KIND))
    is_bridge, is_port = kind == "bridge", info.get(IFLA_INFO_SLAVE_KIND) == b"bridge\0"
    own = chosen_attributes(info.get(IFLA_INFO_DATA, b""), 0, _OF_BRIDGE) if is_bridge else {}
    port = chosen_attributes(info.get(IFLA_INFO_SLAVE_DATA, b""), 0, _OF_PORT) if is_port else {}
    operstate = number_of(attrs.get(IFLA_OPERSTATE))
    nsid = attrs.get(IFLA_LINK_NETNSID)
    return Link(
        index=index,
        name=string_of(attrs.get(IFLA_IFNAME)),
        kind=kind,
        mac=attrs.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=number_of(attrs.get(IFLA_MTU)),
        master=number_of(attrs.get(IFLA_MASTER)),
        flags=flags,
        operstate=_OPERSTATES[operstate] if operstate < len(_OPERSTATES) else str(operstate),
        peer=number_of(attrs.get(IFLA_LINK)),
        peer_nsid=None if nsid is None else _NSID.unpack(nsid)[0],
        promiscuity=number_of(attrs.get(IFLA_PROMISCUITY)),
        tx_queue=number_of(attrs.get(IFLA_TXQLEN)),
        vlan_filtering=bool(number_of(own.get(IFLA_BR_VLAN_FILTERING))),
        hairpin=bool(number_of(port.get(IFLA_BRPORT_MODE))),
        isolated=bool(number_of(port.get(IFLA_BRPORT_ISOLATED))),
    )


def decode_info(data: bytes) -> dict[int, bytes]:
    """Return the attributes of its kind (IFLA_INFO_DATA) of the link in an RTM_NEWLINK."""
    attrs = attributes(data, HEADER_SIZE + _IFINFOMSG.size)
    info = attributes(attrs.get(IFLA_LINKINFO, b""))
    return attributes(info.get(IFLA_INFO_DATA, b""))


def decode_identity(data: bytes) -> tuple[int, int]:
    """Return family and index of an RTM_*LINK message."""
    family, _, index, _, _ = _IFINFOMSG.unpack_from(data, HEADER_SIZE)
    return family, index


def decode_bridge_spec(data: bytes) -> tuple[int, bytes]:
    """Return the index and the nested IFLA_AF_SPEC of an RTM_NEWLINK of the family AF_BRIDGE."""
    _, index = decode_identity(data)
    return index, attributes(data, HEADER_SIZE + _IFINFOMSG.size).get(IFLA_AF_SPEC, b"")


def mac_bytes(mac: str) -> bytes:
    """Return the six bytes of a MAC in colon form."""
    return bytes.fromhex(mac.replace(":", ""))
