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
    from collections.abc import Iterable, Sequence

    from cni_common.kernel.netns import NetNS
    from plugins.portmap.conf import Conf

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
class Target:
    """UDP ports of the node in a row, and the address and first port to which they lead."""

    version: int
    first: int
    last: int
    address: bytes
    port: int
    at: bytes = b""  # the one node address for which that holds

    def leads(self, one: _Connection) -> bool:
        """Tell whether a connection to one of the ports goes to this target."""
        return (one.answers_from, one.answer_port) == (
            self.address,
            self.port + one.port - self.first,
        )


@dataclass(frozen=True, slots=True)
class _Connection:
    port: int  # destination port before translation
    destination: bytes
    answers_from: bytes  # source address of the replies
    answer_port: int
    tuple: bytes  # as the kernel wants it back
    id: bytes


class _Targets:
    """Targets of one IP version, found by port."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self.ports = 0
        self._blocks: dict[int, list[Target]] = {}  # by the upper byte of a port
        for one in targets:
            self.ports += one.last - one.first + 1
            for block in range(one.first >> 8, (one.last >> 8) + 1):
                self._blocks.setdefault(block, []).append(one)

    def of(self, port: int) -> list[Target]:
        """Return the targets of a port."""
        return [one for one in self._blocks.get(port >> 8, ()) if one.first <= port <= one.last]

    def numbers(self) -> set[int]:
        """Return the ports; only for a few."""
        known = (one for block in self._blocks.values() for one in block)
        return {port for one in known for port in range(one.first, one.last + 1)}


def targets_of(conf: Conf) -> list[Target]:
    """Return where the UDP ports of `conf` lead."""
    return [
        Target(
            cidr.version,
            port.host_port,
            port.last,
            cidr.ip.packed,
            port.container_port,
            port.only_at.packed if port.only_at else b"",
        )
        for port, cidr in conf.targets()
        if port.protocol == "udp"
    ]


def forget(netns: NetNS, wanted: Sequence[Target]) -> None:
    """Delete the UDP entries of the ports of `wanted`: the next packet consults the maps again.

    Entries that lead to the targets already, and those of transit traffic, stay. Raises OSError.
    """
    for version, targets in _by_version(wanted):
        stale = [
            one
            for one in _connections(netns, version, targets)
            if any(
                not target.leads(one) and target.at in (b"", one.destination)
                for target in targets.of(one.port)
            )
        ]
        if stale:
            _delete(netns, version, _for_this_host(netns, stale))


def forget_redirected(netns: NetNS, wanted: Sequence[Target]) -> None:
    """Delete the UDP entries of connections that were sent to these targets. Raises OSError."""
    for version, targets in _by_version(wanted):
        connections = _connections(netns, version, targets)
        led = [
            one for one in connections if any(target.leads(one) for target in targets.of(one.port))
        ]
        _delete(netns, version, led)


def _by_version(wanted: Sequence[Target]) -> list[tuple[int, _Targets]]:
    versions = sorted({one.version for one in wanted})
    return [(v, _Targets(one for one in wanted if one.version == v)) for v in versions]


def _connections(netns: NetNS, version: int, targets: _Targets) -> list[_Connection]:
    """Return the UDP entries of some ports: by one dump for each of a few, by one for many."""
    if targets.ports > _PORTS_ASKED_FOR:
        return _listed(netns, version, targets)
    ports = sorted(targets.numbers())
    return [one for port in ports for one in _listed(netns, version, targets, port)]


def _listed(netns: NetNS, version: int, targets: _Targets, port: int = 0) -> list[_Connection]:
    """Return the UDP entries of one port, or without it of all."""
    proto, flags, what = attribute(_PROTO_NUM, bytes([_UDP])), _BY_PROTOCOL, "UDP ports"
    if port:
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
            lambda data: _decode(data, version, targets),
        )
    )
    return [one for one in found if one]


def _decode(data: bytes, version: int, targets: _Targets) -> _Connection | None:
    attrs = attributes(data, HEADER_SIZE + _NFGENMSG.size)
    original = attributes(attrs[_TUPLE_ORIG])
    proto = attributes(original[_TUPLE_PROTO])
    port = int.from_bytes(proto.get(_PROTO_DST_PORT, b""), "big")
    if proto[_PROTO_NUM][0] != _UDP or not targets.of(port):
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
