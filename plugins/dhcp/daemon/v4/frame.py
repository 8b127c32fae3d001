"""DHCP messages in IP packets, for a packet socket: there is no address yet."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from plugins.dhcp.daemon.v4.packet import CLIENT_PORT, SERVER_PORT

# RFC 791: version and length, DSCP, total length, id, fragment, TTL, protocol, checksum, addresses
_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")  # RFC 768
_PSEUDO = struct.Struct("!4s4sBBH")
_UDP_PROTOCOL, _TTL, _DSCP = 17, 64, 0xC0  # CS6: as other clients, network control
_DONT_FRAGMENT, _FRAGMENT = 0x4000, 0x3FFF  # More-Fragments and offset
# struct sock_filter of linux/filter.h: code, jt, jf, k. Of IPv4 packets, without their Ethernet
# header, those of UDP that are no later fragment and go to CLIENT_PORT.
_FILTER = (
    (0x30, 0, 0, 9),  # ldb protocol
    (0x15, 0, 6, _UDP_PROTOCOL),
    (0x28, 0, 0, 6),  # ldh fragment
    (0x45, 4, 0, 0x1FFF),
    (0xB1, 0, 0, 0),  # ldxb 4 * header length
    (0x48, 0, 0, 2),  # ldh destination port
    (0x15, 0, 1, CLIENT_PORT),
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
)
FILTER = b"".join(struct.pack("@HBBI", *one) for one in _FILTER)
FILTER_LENGTH = len(_FILTER)


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP packet to CLIENT_PORT."""

    source: IPv4Address
    payload: bytes


def encode(source: IPv4Address, target: IPv4Address, payload: bytes) -> bytes:
    """Return the IP packet that brings `payload` from a client to a server."""
    length = _UDP.size + len(payload)
    ports = (CLIENT_PORT, SERVER_PORT, length)
    pseudo = _PSEUDO.pack(source.packed, target.packed, 0, _UDP_PROTOCOL, length)
    checksum = _sum(pseudo + _UDP.pack(*ports, 0) + payload) or 0xFFFF
    head = (0x45, _DSCP, _IP.size + length, 0, _DONT_FRAGMENT, _TTL, _UDP_PROTOCOL)
    ends = (source.packed, target.packed)
    return (
        _IP.pack(*head, _sum(_IP.pack(*head, 0, *ends)), *ends)
        + _UDP.pack(*ports, checksum)
        + payload
    )


def decode(packet: bytes, *, is_checked: bool = False) -> Datagram | None:
    """Return what an IP packet brings from a server's port, None if it is anything else.

    `is_checked`: the kernel has not computed the checksum of UDP, since the packet has never been
    on a wire (TP_STATUS_CSUMNOTREADY of linux/if_packet.h).
    """
    if len(packet) < _IP.size:
        return None
    head, _, total, _, fragment, _, protocol, _, source, target = _IP.unpack_from(packet)
    start = (head & 0xF) * 4
    wrong = head >> 4 != 4 or protocol != _UDP_PROTOCOL or fragment & _FRAGMENT
    if wrong or start < _IP.size or not start + _UDP.size <= total <= len(packet):
        return None
    if _sum(packet[:start]):
        return None
    sender, receiver, length, checksum = _UDP.unpack_from(packet, start)
    if (sender, receiver) != (SERVER_PORT, CLIENT_PORT):
        return None
    if not _UDP.size <= length <= total - start:
        return None
    datagram = packet[start : start + length]
    if checksum and not is_checked:
        pseudo = _PSEUDO.pack(source, target, 0, _UDP_PROTOCOL, length)
        if _sum(pseudo + datagram):
            return None
    return Datagram(IPv4Address(source), datagram[_UDP.size :])


def _sum(data: bytes) -> int:
    """Return the checksum of RFC 1071; 0 over data that has a right one."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
