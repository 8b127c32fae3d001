"""What a network interface is like, and how rtnetlink says it (linux/if_link.h)."""

import struct
import sys
from dataclasses import dataclass

from cni_common.netlink import nla, nlmsg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

IFF_UP, IFF_PROMISC = 0x1, 0x100  # linux/if.h
_IFINFOMSG, _NLATTR = struct.Struct("=BxHiII"), struct.Struct("=HH")
_HEADER_SIZE, _NLA_TYPE_MASK = 16, 0x3FFF  # of struct nlmsghdr; less the flags of a type
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_PROMISCUITY, _IFLA_LINK_NETNSID = 16, 18, 30, 37
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_IFLA_BR_VLAN_FILTERING, _IFLA_BRPORT_MODE, _IFLA_BRPORT_ISOLATED = 7, 4, 33
_HEX = frozenset("0123456789abcdefABCDEF")
_OPERSTATES = ("UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP")


_FIELDS = (
    *(("family", "B"), ("__align", "x"), ("ifi_type", "H"), ("index", "i"), ("flags", "I")),
    ("change", "I"),
)
_END_ATTRIBUTES = (  # of either end of a veth pair
    *((1, "IFLA_ADDRESS", "l2addr"), (3, "IFLA_IFNAME", "asciiz"), (4, "IFLA_MTU", "uint32")),
    (28, "IFLA_NET_NS_FD", "uint32"),
)


class _BridgeSpec(nla):  # type: ignore[misc]  # pyroute2 is not typed, nor are those below
    """IFLA_AF_SPEC of the family AF_BRIDGE (linux/if_bridge.h)."""

    nla_map = ((0, "IFLA_BRIDGE_FLAGS", "uint16"), (2, "IFLA_BRIDGE_VLAN_INFO", "vlan_info"))

    class vlan_info(nla):  # type: ignore[misc]  # noqa: N801 - the kernel's name, likewise below
        fields = (("flags", "H"), ("vid", "H"))


class _LinkInfo(nla):  # type: ignore[misc]
    """IFLA_LINKINFO; the one IFLA_INFO_DATA has what bridge and veth need, by other numbers."""

    nla_map = (
        *((1, "IFLA_INFO_KIND", "asciiz"), (2, "IFLA_INFO_DATA", "data_of_kind")),
        *((4, "IFLA_INFO_SLAVE_KIND", "asciiz"), (5, "IFLA_INFO_SLAVE_DATA", "bridge_port")),
    )

    class data_of_kind(nla):  # type: ignore[misc]  # noqa: N801
        nla_map = ((1, "VETH_INFO_PEER", "peer"), (7, "IFLA_BR_VLAN_FILTERING", "uint8"))

        class peer(nla):  # type: ignore[misc]  # noqa: N801
            fields = _FIELDS
            nla_map = _END_ATTRIBUTES

    class bridge_port(nla):  # type: ignore[misc]  # noqa: N801
        nla_map = ((4, "IFLA_BRPORT_MODE", "uint8"), (33, "IFLA_BRPORT_ISOLATED", "uint8"))


class LinkMessage(nlmsg):  # type: ignore[misc]
    """struct ifinfomsg with the attributes that are sent here.

    pyroute2 has one with all of them; it loads multiprocessing, platform and a module for each
    kind of link, which is a seventh of a cold start.
    """

    fields = _FIELDS
    nla_map = (
        *_END_ATTRIBUTES,
        *((10, "IFLA_MASTER", "uint32"), (18, "IFLA_LINKINFO", "linkinfo")),
        *((26, "IFLA_AF_SPEC", "bridge_spec"), (27, "IFLA_GROUP", "uint32")),
        (29, "IFLA_EXT_MASK", "uint32"),
    )
    linkinfo = _LinkInfo
    bridge_spec = _BridgeSpec


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as the kernel describes it."""

    index: int
    name: str
    kind: str  # "" for physical ones and lo
    mac: str
    mtu: int
    master: int  # index, 0 = none
    flags: int  # IFF_*
    operstate: str  # "UP", "DOWN", "LOWERLAYERDOWN", …
    peer: int  # index of a veth's other end, in the namespace `peer_nsid`
    peer_nsid: int | None
    promiscuity: int
    vlan_filtering: bool
    hairpin: bool
    isolated: bool

    @property
    def up(self) -> bool:
        """Whether it is up administratively."""
        return bool(self.flags & IFF_UP)


@dataclass(frozen=True, slots=True)
class VethEnd:
    """One end of a veth pair to be: `netns` is a descriptor of its namespace, -1 = the socket's."""

    name: str
    mac: str
    mtu: int = 0  # bytes, 0 = the kernel's default
    netns: int = -1

    def attributes(self) -> "list[tuple[str, Any]]":
        """Return the rtnetlink attributes that describe this end."""
        attrs: list[tuple[str, Any]] = [("IFLA_IFNAME", self.name), ("IFLA_ADDRESS", self.mac)]
        if self.mtu:
            attrs.append(("IFLA_MTU", self.mtu))
        if self.netns >= 0:
            attrs.append(("IFLA_NET_NS_FD", self.netns))
        return attrs


def decode_link(data: bytes) -> Link:
    """Return the link that an RTM_NEWLINK describes.

    Taken apart by hand: of its 60 attributes 12 matter, and this is on the path of every ADD.
    """
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(data, _HEADER_SIZE)
    attrs = _attributes(data[_HEADER_SIZE + _IFINFOMSG.size :])
    info = _attributes(attrs.get(_IFLA_LINKINFO, b""))
    kind = _text(info.get(_IFLA_INFO_KIND))
    own = _attributes(info.get(_IFLA_INFO_DATA, b"")) if kind == "bridge" else {}
    is_port = _text(info.get(_IFLA_INFO_SLAVE_KIND)) == "bridge"
    port = _attributes(info.get(_IFLA_INFO_SLAVE_DATA, b"")) if is_port else {}
    operstate = _number(attrs.get(_IFLA_OPERSTATE))
    nsid = attrs.get(_IFLA_LINK_NETNSID)
    return Link(
        index=index,
        name=_text(attrs.get(_IFLA_IFNAME)),
        kind=kind,
        mac=attrs.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(attrs.get(_IFLA_MTU)),
        master=_number(attrs.get(_IFLA_MASTER)),
        flags=flags,
        operstate=_OPERSTATES[operstate] if operstate < len(_OPERSTATES) else str(operstate),
        peer=_number(attrs.get(_IFLA_LINK)),
        peer_nsid=None if nsid is None else int.from_bytes(nsid, sys.byteorder, signed=True),
        promiscuity=_number(attrs.get(_IFLA_PROMISCUITY)),
        vlan_filtering=bool(_number(own.get(_IFLA_BR_VLAN_FILTERING))),
        hairpin=bool(_number(port.get(_IFLA_BRPORT_MODE))),
        isolated=bool(_number(port.get(_IFLA_BRPORT_ISOLATED))),
    )


def _attributes(data: bytes) -> dict[int, bytes]:
    """Return the netlink attributes in `data` by their types (linux/netlink.h, struct nlattr)."""
    found, offset = {}, 0
    while offset + _NLATTR.size <= len(data):
        length, kind = _NLATTR.unpack_from(data, offset)
        found[kind & _NLA_TYPE_MASK] = data[offset + _NLATTR.size : offset + length]
        offset += max(_NLATTR.size, (length + 3) & ~3)
    return found


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", sys.byteorder)


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(bytes(1)).decode("utf-8", "surrogateescape")


def parse_mac(text: str) -> str:
    """Return an Ethernet MAC in colon form; ValueError unless it is a unicast one of 6 bytes."""
    digits = ""
    for mark, width, count in ((":", 2, 6), ("-", 2, 6), (".", 4, 3)):
        groups = text.split(mark)
        if [len(group) for group in groups] == [width] * count:
            digits = "".join(groups)
    if not digits or not _HEX.issuperset(digits):
        raise ValueError(f"{text!r}, not six bytes such as 02:11:22:33:44:55")
    octets = bytes.fromhex(digits)
    if octets[0] & 1 or not any(octets):
        raise ValueError(f"{text!r}, which no interface can have: it is a group address or zero")
    return octets.hex(":")
