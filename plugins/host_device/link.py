"""Network interfaces that change their namespace, in rtnetlink (linux/if_link.h)."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.link import (
    IFF_UP,
    IFLA_EXT_MASK,
    IFLA_IFNAME,
    IFLA_NET_NS_FD,
    decode_link,
    encode_link,
)
from cni_common.kernel.netlink import (
    HEADER_SIZE,
    NLM_F_ACK,
    NLM_F_DUMP,
    Message,
    NetlinkError,
    attribute,
    attributes,
    string,
    string_of,
    u32,
)
from cni_common.kernel.rtnetlink import RTEXT_FILTER_SKIP_STATS, RTM_GETLINK, RTM_SETLINK
from cni_common.spec.names import IFNAME_MAX_BYTES

if TYPE_CHECKING:
    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS

_IFLA_IFALIAS, _IFLA_ALT_IFNAME, _IFLA_PERM_ADDRESS = 20, 53, 54
_IFLA_PARENT_DEV_NAME, _IFLA_PARENT_DEV_BUS_NAME = 56, 57
_IFINFOMSG_SIZE = 16  # bytes
_NO_STATS = u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
# The kernel refuses to rename an interface: its name is taken, or it is up.
NOT_RENAMED = (errno.EEXIST, errno.EBUSY)
_SPARE_NAMES = 100
# Kinds that the kernel moves to its first namespace where their own one ends: those without a
# kind, which are hardware, and CAN (netns_refund of struct rtnl_link_ops). The kernel destroys all
# others.
_OUTLIVES = ("", "can")


@dataclass(frozen=True, slots=True)
class Device:
    """An interface, and what tells it from others of the same name or MAC."""

    link: Link
    alias: str
    permanent_mac: str  # "" where it has none
    parent: str  # bus and name of the device below it: "pci 0000:00:03.0"; "" for virtual ones


def outlives_namespace(kind: str) -> bool:
    """Tell whether the kernel moves an interface on when its namespace ends, not destroying it."""
    return kind in _OUTLIVES


def named(netns: NetNS, name: str) -> Device | None:
    """Return the interface with this name or alternative name. Raises NetlinkError."""
    kind = IFLA_IFNAME if len(name.encode()) <= IFNAME_MAX_BYTES else _IFLA_ALT_IFNAME
    return _look_up(netns, encode_link(string(kind, name), _NO_STATS), f"look up '{name}'")


def at(netns: NetNS, index: int) -> Device | None:
    """Return the interface with this index. Raises NetlinkError."""
    return _look_up(netns, encode_link(_NO_STATS, index=index), f"look up interface {index}")


def all_of(netns: NetNS) -> list[Device]:
    """Return all interfaces. Raises NetlinkError."""
    body = encode_link(_NO_STATS)
    message = Message("list interfaces", RTM_GETLINK, NLM_F_DUMP, body, _decode)
    return netns.netlink.channel.dump(message)


def move(netns: NetNS, link: Link, target: NetNS, name: str, *, alias: str) -> None:
    """Move an interface into `target`, under its name there and with an alias, by one message.

    The interface is down there. Raises NetlinkError: EEXIST if the name is taken, ENODEV if it is
    gone. The kernel may have moved it without renaming it.
    """
    body = encode_link(
        u32(IFLA_NET_NS_FD, target.fd),
        string(IFLA_IFNAME, name),
        attribute(_IFLA_IFALIAS, alias.encode()),
        index=link.index,
    )
    _do(netns, f"move '{link.name}' to '{target.path}' as '{name}'", body)


def bring_home(netns: NetNS, link: Link, home: NetNS, name: str, *, alias: str) -> str:
    """Move an interface to the host under `name`, or under another one if that is taken.

    Return its name there. The device gets that name before it is moved, so no program of the host
    sees another one. Raises NetlinkError.
    """
    if link.up:
        netns.netlink.set_down(link.index)
    if link.name != name:
        try:
            rename(netns, link, name)
        except NetlinkError as error:
            if error.errno not in NOT_RENAMED:
                raise
    for number in range(_SPARE_NAMES):
        chosen = f"dev{link.index + number - 1}" if number else name
        if home.netlink.identify(chosen) is not None:
            continue
        try:
            move(netns, link, home, chosen, alias=alias)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
        else:
            return chosen
    raise NetlinkError(errno.EEXIST, f"'{name}' and {_SPARE_NAMES - 1} other names are taken")


def rename(netns: NetNS, link: Link, name: str) -> None:
    """Give an interface that is down another name. Raises NetlinkError."""
    body = encode_link(string(IFLA_IFNAME, name), index=link.index)
    _do(netns, f"rename '{link.name}' to '{name}'", body)


def set_alias(netns: NetNS, index: int, alias: str) -> None:
    """Set the alias, "" for none. Raises NetlinkError."""
    body = encode_link(attribute(_IFLA_IFALIAS, alias.encode()), index=index)
    _do(netns, f"set alias of interface {index}", body)


def set_flags(netns: NetNS, index: int, flags: int, mask: int) -> None:
    """Set those of an interface's IFF_* flags that are in `mask`. Raises NetlinkError."""
    body = encode_link(index=index, flags=flags & mask, change=mask)
    _do(netns, f"set interface {index} {'up' if flags & IFF_UP else 'down'}", body)


def _do(netns: NetNS, what: str, body: bytes) -> None:
    netns.netlink.channel.exchange([Message(what, RTM_SETLINK, NLM_F_ACK, body)])


def _look_up(netns: NetNS, body: bytes, what: str) -> Device | None:
    message = Message(what, RTM_GETLINK, NLM_F_ACK, body, _decode)
    found = netns.netlink.channel.exchange([message], absent=(errno.ENODEV,))[0]
    return found[0] if found else None


def _decode(data: bytes) -> Device:
    attrs = attributes(data, HEADER_SIZE + _IFINFOMSG_SIZE)
    bus, name = (
        string_of(attrs.get(kind)) for kind in (_IFLA_PARENT_DEV_BUS_NAME, _IFLA_PARENT_DEV_NAME)
    )
    return Device(
        decode_link(data),
        alias=string_of(attrs.get(_IFLA_IFALIAS)),
        permanent_mac=attrs.get(_IFLA_PERM_ADDRESS, b"").hex(":"),
        parent=f"{bus} {name}" if name else "",
    )
