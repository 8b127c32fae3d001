"""DHCPv4 messages as bytes (RFC 2131, options of RFC 2132, 3396 and 3442)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TYPE_CHECKING

from plugins.dhcp.daemon.options import MalformedError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SERVER_PORT, CLIENT_PORT = 67, 68
# Option codes (RFC 2132).
PAD, SUBNET_MASK, ROUTERS, DNS_SERVERS, HOST_NAME, DOMAIN = 0, 1, 3, 6, 12, 15
MTU, STATIC_ROUTES, NTP_SERVERS, REQUESTED_ADDRESS, LEASE_SECONDS = 26, 33, 42, 50, 51
OVERLOAD, MESSAGE_TYPE, SERVER_ID, PARAMETERS, TEXT, MESSAGE_SIZE = 52, 53, 54, 55, 56, 57
RENEWAL_SECONDS, REBINDING_SECONDS, CLIENT_ID, DOMAIN_SEARCH = 58, 59, 61, 119
CLASSLESS_ROUTES, END = 121, 255
# Message types (RFC 2132 section 9.6).
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE = range(1, 8)
NAMES = ("", "DISCOVER", "OFFER", "REQUEST", "DECLINE", "ACK", "NAK", "RELEASE")
_BOOTREQUEST, _BOOTREPLY, _ETHERNET = 1, 2, 1
_BROADCAST_FLAG = 0x8000
# op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file
_HEADER = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_COOKIE = bytes((99, 130, 83, 99))
_SIZE_MIN = 300  # bytes, of BOOTP (RFC 951): some relays and servers drop shorter messages
_PART_MAX = 255  # bytes of one option; longer values are split (RFC 3396)
_FILE, _SNAME = 1, 2  # bits of OVERLOAD
NOWHERE, EVERYWHERE = IPv4Address(0), IPv4Address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class Message:
    """A DHCP message. Addresses that are not set are 0.0.0.0."""

    kind: int  # DISCOVER, OFFER, …
    xid: int  # 32 bits
    mac: str  # chaddr
    is_reply: bool = False
    secs: int = 0  # since the client began, at most 65535
    broadcast: bool = False  # the server shall broadcast its answer
    ciaddr: IPv4Address = NOWHERE
    yiaddr: IPv4Address = NOWHERE
    giaddr: IPv4Address = NOWHERE
    options: Mapping[int, bytes] = field(default_factory=dict)  # without MESSAGE_TYPE

    @property
    def name(self) -> str:
        """Its kind in words."""
        return NAMES[self.kind]

    def encode(self) -> bytes:
        """Return the message, padded to the size that BOOTP had."""
        head = _HEADER.pack(
            _BOOTREPLY if self.is_reply else _BOOTREQUEST,
            _ETHERNET,
            6,
            0,
            self.xid,
            min(self.secs, 0xFFFF),
            _BROADCAST_FLAG if self.broadcast else 0,
            self.ciaddr.packed,
            self.yiaddr.packed,
            NOWHERE.packed,
            self.giaddr.packed,
            bytes.fromhex(self.mac.replace(":", "")),
            b"",
            b"",
        )
        options = {MESSAGE_TYPE: bytes([self.kind]), **self.options}
        body = b"".join(_encoded(code, value) for code, value in options.items())
        return (head + _COOKIE + body + bytes([END])).ljust(_SIZE_MIN, bytes(1))

    def address(self, code: int) -> IPv4Address | None:
        """Return the first address of an option, None if it is absent or too short."""
        found = self.addresses(code)
        return found[0] if found else None

    def addresses(self, code: int) -> list[IPv4Address]:
        """Return the addresses of an option that is a list of them."""
        return [IPv4Address(part) for part in _pieces(self.options.get(code, b""), 4)]

    def number(self, code: int, size: int = 4) -> int | None:
        """Return the number of an option of `size` bytes, None if it is absent or of another."""
        value = self.options.get(code, b"")
        return int.from_bytes(value, "big") if len(value) == size else None

    def text(self, code: int) -> str:
        """Return the text of an option without control characters, "" if it is absent."""
        return printable(self.options.get(code, b""))


def decode(data: bytes) -> Message:
    """Return the message in `data`. Raises MalformedError."""
    if len(data) < _HEADER.size + len(_COOKIE):
        raise MalformedError(f"{len(data)} bytes")
    op, htype, hlen, _, xid, secs, flags, ciaddr, yiaddr, _, giaddr, chaddr, sname, file = (
        _HEADER.unpack_from(data)
    )
    if data[_HEADER.size : _HEADER.size + len(_COOKIE)] != _COOKIE:
        raise MalformedError("BOOTP without options")
    if op not in (_BOOTREQUEST, _BOOTREPLY) or htype != _ETHERNET or hlen != 6:
        raise MalformedError("no message about an Ethernet interface")
    options = _options(data[_HEADER.size + len(_COOKIE) :], sname, file)
    kind = options.pop(MESSAGE_TYPE, b"")
    if len(kind) != 1:
        raise MalformedError("no message type")
    return Message(
        kind[0],
        xid,
        chaddr[:6].hex(":"),
        op == _BOOTREPLY,
        secs,
        bool(flags & _BROADCAST_FLAG),
        IPv4Address(ciaddr),
        IPv4Address(yiaddr),
        IPv4Address(giaddr),
        options,
    )


def classless_routes(value: bytes) -> list[tuple[IPv4Network, IPv4Address]]:
    """Return destinations and routers of CLASSLESS_ROUTES (RFC 3442). Raises MalformedError."""
    found, at = [], 0
    while at < len(value):
        width = value[at]
        end = at + 1 + (width + 7) // 8
        if width > 32 or end + 4 > len(value):
            raise MalformedError("classless routes that are cut short")
        network = int.from_bytes(value[at + 1 : end].ljust(4, bytes(1)), "big")
        network &= -1 << (32 - width)
        found.append((IPv4Network((network, width)), IPv4Address(value[end : end + 4])))
        at = end + 4
    return found


def static_routes(value: bytes) -> list[tuple[IPv4Network, IPv4Address]]:
    """Return destinations, of classful subnets, and routers of STATIC_ROUTES (RFC 2132, 5.8)."""
    found = []
    for pair in _pieces(value, 8):
        first = pair[0]
        width = 8 if first < 128 else 16 if first < 192 else 24
        network = IPv4Interface((pair[:4], width)).network
        found.append((network, IPv4Address(pair[4:])))
    return found


def _encoded(code: int, value: bytes) -> bytes:
    parts = [value[at : at + _PART_MAX] for at in range(0, len(value), _PART_MAX)] or [b""]
    return b"".join(bytes([code, len(part)]) + part for part in parts)


def _options(data: bytes, sname: bytes, file: bytes) -> dict[int, bytes]:
    """Return the options, also those that are in the fields `file` and `sname` (OVERLOAD)."""
    found: dict[int, bytes] = {}
    for code, value in _each_option(data):
        found[code] = found.get(code, b"") + value
    overload = found.pop(OVERLOAD, b"\0")[:1]
    for bit, area in ((_FILE, file), (_SNAME, sname)):
        if overload and overload[0] & bit:
            for code, value in _each_option(area):
                found[code] = found.get(code, b"") + value
    return found


def _each_option(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data) and data[at] != END:
        if data[at] == PAD:
            at += 1
            continue
        if at + 1 >= len(data):
            raise MalformedError("an option without length")
        code, length = data[at], data[at + 1]
        value = data[at + 2 : at + 2 + length]
        if len(value) != length:
            raise MalformedError(f"option {code} is cut short")
        yield code, value
        at += 2 + length


def _pieces(value: bytes, size: int) -> list[bytes]:
    return [value[at : at + size] for at in range(0, len(value) - size + 1, size)]
