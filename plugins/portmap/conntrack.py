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
    NetlinkError,
    attribute,
    attributes,
    u32,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

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
_BY_PROTOCOL_AND_PORT = 1 << 3 | 1 << 5  # CTA_FILTER_F_CTA_PROTO_NUM and _DST_PORT
_UDP = 17


@dataclass(frozen=True, slots=True)
class _Connection:
    port: int  # destination port before translation
    protocol: int
    destination: bytes
    answers_from: bytes  # source address of the replies
    answer_port: int
    tuple: bytes  # as the kernel wants it back
    id: bytes


def forget(netns: NetNS, conf: Conf) -> None:
    """Delete the UDP entries of the ports of `conf`: the next packet consults the maps again.

    Entries that lead to its container already, and those of transit traffic, stay. Raises OSError.
    """
    for port, cidr in conf.targets():
        if port.protocol != "udp":
            continue
        stale = [
            one
            for one in _connections(netns, cidr.version, port.host_port)
            if (port.only_at is None or one.destination == port.only_at.packed)
            and (one.answers_from, one.answer_port) != (cidr.ip.packed, port.container_port)
        ]
        if stale:
            _delete(netns, cidr.version, _for_this_host(netns, stale))


def forget_redirected(netns: NetNS, udp: Iterable[Sequence[Any]]) -> None:
    """Delete the UDP entries of connections to a container.

    `udp` has for each IP version and host port the container's address, in hexadecimal digits, and
    port. Raises OSError.
    """
    for version, host_port, address, port in udp:
        led = [
            one
            for one in _connections(netns, version, host_port)
            if (one.answers_from.hex(), one.answer_port) == (address, port)
        ]
        _delete(netns, version, led)


def _connections(netns: NetNS, version: int, port: int) -> list[_Connection]:
    proto = attribute(_PROTO_NUM, bytes([_UDP])) + attribute(
        _PROTO_DST_PORT, port.to_bytes(2, "big")
    )
    wanted = attribute(_TUPLE_ORIG, attribute(_TUPLE_PROTO, proto))
    # Kernels before 5.8 ignore the filter, and send all entries.
    body = wanted + attribute(_FILTER | _NESTED, u32(_FILTER_ORIG_FLAGS, _BY_PROTOCOL_AND_PORT))
    found = netns.netfilter.dump(
        Message(
            f"list connections to UDP port {port}",
            _GET,
            NLM_F_DUMP,
            _NFGENMSG.pack(_FAMILY[version], 0, 0) + body,
            lambda data: _decode(data, version),
        )
    )
    return [one for one in found if (one.protocol, one.port) == (_UDP, port)]


def _decode(data: bytes, version: int) -> _Connection:
    attrs = attributes(data, HEADER_SIZE + _NFGENMSG.size)
    original, reply = attributes(attrs[_TUPLE_ORIG]), attributes(attrs[_TUPLE_REPLY])
    proto = attributes(original[_TUPLE_PROTO])
    return _Connection(
        int.from_bytes(proto.get(_PROTO_DST_PORT, b""), "big"),
        proto[_PROTO_NUM][0],
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
    for one in connections:
        body = attribute(_TUPLE_ORIG, one.tuple) + attribute(_ID, one.id)
        header = _NFGENMSG.pack(_FAMILY[version], 0, 0)
        try:
            netns.netfilter.exchange(
                [Message("forget a connection", _DELETE, NLM_F_ACK, header + body)]
            )
        except NetlinkError as error:
            if error.errno != errno.ENOENT:  # the entry has expired
                raise
