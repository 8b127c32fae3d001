"""Deletion of conntrack entries of UDP connections to a port whose mapping has changed.

A UDP sender that continues from the same port keeps the translation of its first packet: connection
tracking does not consult the maps again. Numbers are those of
linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import (
    HEADER_SIZE,
    NLM_F_ACK,
    NLM_F_DUMP,
    Message,
    attribute,
    attributes,
    u32,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from typing import Any

    from cni_common.kernel.netns import NetNS
    from cni_common.spec.names import Cidr
    from plugins.portmap.conf import Conf, Port

_NFGENMSG = struct.Struct("=BBH")
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
_FAMILY = {4: 2, 6: 10}
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _FILTER = 1, 2, 12, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SRC, _DST = {4: 1, 6: 3}, {4: 2, 6: 4}  # CTA_IP_V*_*
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS, _NESTED = 1, 0x8000
_BY_PROTOCOL, _BY_PORT = 1 << 3, 1 << 5  # CTA_FILTER_F_CTA_PROTO_NUM and _DST_PORT
_UDP = 17
_PORTS_ASKED_FOR = 4  # at most: each costs a walk through the kernel's table


@dataclass(frozen=True, slots=True)
class _Connection:
    port: int  # destination port before translation
    destination: bytes
    answers_from: bytes  # source address of the replies
    answer_port: int
    tuple: bytes  # as the kernel wants it back
    id: bytes


def forget(netns: NetNS, conf: Conf) -> None:
    """Delete the UDP entries of the ports of `conf`: the next packet consults the maps again.

    Entries that lead to its container already, and those of transit traffic, stay. Raises OSError.
    """
    wanted: dict[int, dict[int, list[tuple[Port, Cidr]]]] = {}
    for port, cidr in conf.targets():
        if port.protocol == "udp":
            of_version = wanted.setdefault(cidr.version, {})
            of_version.setdefault(port.host_port, []).append((port, cidr))
    for version, ports in wanted.items():
        stale = [
            one
            for one in _connections(netns, version, ports)
            if any(_is_stale(one, port, cidr) for port, cidr in ports[one.port])
        ]
        if stale:
            _delete(netns, version, _for_this_host(netns, stale))


def forget_redirected(netns: NetNS, udp: Iterable[Sequence[Any]]) -> None:
    """Delete the UDP entries of connections to a container.

    `udp` has for each IP version and host port the container's address, in hexadecimal digits, and
    port. Raises OSError.
    """
    wanted: dict[int, dict[int, set[tuple[str, int]]]] = {}
    for version, host_port, address, port in udp:
        targets = wanted.setdefault(version, {}).setdefault(host_port, set())
        targets.add((address, port))
    for version, ports in wanted.items():
        led = [
            one
            for one in _connections(netns, version, ports)
            if (one.answers_from.hex(), one.answer_port) in ports[one.port]
        ]
        _delete(netns, version, led)


def _is_stale(one: _Connection, port: Port, cidr: Cidr) -> bool:
    target = (cidr.ip.packed, port.container_port)
    return (one.answers_from, one.answer_port) != target and (
        port.only_at is None or one.destination == port.only_at.packed
    )


def _connections(netns: NetNS, version: int, ports: Collection[int]) -> list[_Connection]:
    """Return the UDP entries of `ports`: by one dump for each of a few, by one of all for many."""
    if len(ports) > _PORTS_ASKED_FOR:
        return _listed(netns, version, ports)
    return [one for port in ports for one in _listed(netns, version, [port])]


def _listed(netns: NetNS, version: int, ports: Collection[int]) -> list[_Connection]:
    proto, flags, what = attribute(_PROTO_NUM, bytes([_UDP])), _BY_PROTOCOL, "UDP ports"
    if len(ports) == 1:
        (port,) = ports
        proto += attribute(_PROTO_DST_PORT, port.to_bytes(2, "big"))
        flags, what = flags | _BY_PORT, f"UDP port {port}"
    wanted = attribute(_TUPLE_ORIG, attribute(_TUPLE_PROTO, proto))
    # Kernels before 5.8 ignore the filter, and send all entries.
    body = wanted + attribute(_FILTER | _NESTED, u32(_FILTER_ORIG_FLAGS, flags))
    found = netns.netfilter.dump(
        Message(
            f"list connections to {what}",
            _GET,
            NLM_F_DUMP,
            _NFGENMSG.pack(_FAMILY[version], 0, 0) + body,
            lambda data: _decode(data, version, ports),
        )
    )
    return [one for one in found if one]


def _decode(data: bytes, version: int, ports: Collection[int]) -> _Connection | None:
    attrs = attributes(data, HEADER_SIZE + _NFGENMSG.size)
    original = attributes(attrs[_TUPLE_ORIG])
    proto = attributes(original[_TUPLE_PROTO])
    port = int.from_bytes(proto.get(_PROTO_DST_PORT, b""), "big")
    if proto[_PROTO_NUM][0] != _UDP or port not in ports:
        return None
    reply = attributes(attrs[_TUPLE_REPLY])
    return _Connection(
        port,
        attributes(original[_TUPLE_IP]).get(_DST[version], b""),
        attributes(reply[_TUPLE_IP]).get(_SRC[version], b""),
        int.from_bytes(attributes(reply[_TUPLE_PROTO]).get(_PROTO_SRC_PORT, b""), "big"),
        attrs[_TUPLE_ORIG],
        attrs.get(_ID, b""),
    )


def _for_this_host(netns: NetNS, stale: list[_Connection]) -> list[_Connection]:
    """Return the entries that were redirected, or are for an address of this host."""
    own = {cidr.ip.packed for cidr, _ in netns.netlink.addresses()}
    return [
        one
        for one in stale
        if one.destination != one.answers_from
        or one.destination in own
        or one.destination[0] == 127
    ]


def _delete(netns: NetNS, version: int, connections: list[_Connection]) -> None:
    header = _NFGENMSG.pack(_FAMILY[version], 0, 0)
    bodies = [
        header + attribute(_TUPLE_ORIG, one.tuple) + attribute(_ID, one.id) for one in connections
    ]
    messages = [Message("forget a connection", _DELETE, NLM_F_ACK, body) for body in bodies]
    netns.netfilter.exchange(messages, absent=[errno.ENOENT])  # those that have ended
