"""DHCPv6 messages as bytes (RFC 8415, options of RFC 3646 and 5908)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from plugins.dhcp.daemon.options import MalformedError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SERVER_PORT, CLIENT_PORT = 547, 546
SERVERS = IPv6Address("ff02::1:2")  # All_DHCP_Relay_Agents_and_Servers
NOWHERE = IPv6Address(0)
# Message types (RFC 8415 section 7.3).
SOLICIT, ADVERTISE, REQUEST, CONFIRM, RENEW, REBIND, REPLY, RELEASE, DECLINE = range(1, 10)
NAMES = (
    *("", "SOLICIT", "ADVERTISE", "REQUEST", "CONFIRM", "RENEW", "REBIND", "REPLY", "RELEASE"),
    "DECLINE",
)
# Option codes (RFC 8415 section 24).
CLIENT_ID, SERVER_ID, IA_NA, IA_ADDRESS, REQUESTED, PREFERENCE, ELAPSED = 1, 2, 3, 5, 6, 7, 8
STATUS, RAPID_COMMIT, DNS_SERVERS, DOMAINS, NTP_SERVERS, SOLICIT_MOST = 13, 14, 23, 24, 56, 82
# Status codes (RFC 8415 section 21.13).
SUCCESS, FAILED, NO_ADDRESS, NO_BINDING, NOT_ON_LINK, USE_MULTICAST = range(6)
STATUS_NAMES = (
    *("Success", "UnspecFail", "NoAddrsAvail", "NoBinding", "NotOnLink", "UseMulticast"),
)
FOREVER = 0xFFFFFFFF
_NTP_SERVER_ADDRESS = 1  # suboption (RFC 5908)
_OPTION, _ASSOCIATION = struct.Struct("!HH"), struct.Struct("!III")
_ADDRESS = struct.Struct("!16sII")
_IDENTIFIER_MAX = 130  # bytes of a DUID (RFC 8415 section 11.1), with its type
_HUNDREDTHS_MAX = 0xFFFF


@dataclass(frozen=True, slots=True)
class Status:
    """A status code, and the server's words."""

    code: int = SUCCESS
    text: str = ""

    def __str__(self) -> str:
        """Return both for people."""
        known = 0 <= self.code < len(STATUS_NAMES)
        name = STATUS_NAMES[self.code] if known else f"status {self.code}"
        return f"{name}, {self.text}" if self.text else name


@dataclass(frozen=True, slots=True)
class Given:
    """An address of an association, in seconds from the message on."""

    address: IPv6Address
    preferred: int = 0
    valid: int = 0


@dataclass(frozen=True, slots=True)
class Association:
    """An IA_NA: the addresses of one interface."""

    number: int  # IAID
    renew: int = 0  # T1, seconds
    rebind: int = 0  # T2
    addresses: Sequence[Given] = ()
    status: Status = field(default_factory=Status)


@dataclass(frozen=True, slots=True)
class Message:
    """A DHCPv6 message between client and server."""

    kind: int  # SOLICIT, ADVERTISE, …
    xid: int  # 24 bits
    client: bytes = b""  # DUID
    server: bytes = b""  # DUID
    associations: Sequence[Association] = ()
    options: Mapping[int, bytes] = field(default_factory=dict)  # all others
    source: IPv6Address = NOWHERE  # that it came from

    @property
    def name(self) -> str:
        """Its kind in words."""
        return NAMES[self.kind]

    @property
    def status(self) -> Status:
        """The status that the server gives for the message as a whole."""
        return _status(self.options.get(STATUS, b""))

    @property
    def preference(self) -> int:
        """The server's preference, 0 to 255."""
        value = self.options.get(PREFERENCE, b"")
        return value[0] if len(value) == 1 else 0

    def association(self, number: int) -> Association | None:
        """Return the first IA_NA of a number."""
        return next((one for one in self.associations if one.number == number), None)

    def encode(self) -> bytes:
        """Return the message as it is sent."""
        parts = [bytes([self.kind]), self.xid.to_bytes(3, "big")]
        for code, identifier in ((CLIENT_ID, self.client), (SERVER_ID, self.server)):
            if identifier:
                parts.append(_encoded(code, identifier))
        parts += [_encoded(IA_NA, _association_bytes(one)) for one in self.associations]
        parts += [_encoded(code, value) for code, value in self.options.items()]
        return b"".join(parts)


def decode(data: bytes, source: IPv6Address = NOWHERE) -> Message:
    """Return the message in `data`. Raises MalformedError, also for those of relays."""
    if len(data) < 4 or not SOLICIT <= data[0] <= DECLINE:
        raise MalformedError("no message between client and server")
    options: dict[int, bytes] = {}
    associations = []
    for code, value in _each_option(data[4:]):
        if code == IA_NA:
            associations.append(_association_in(value))
        else:
            options.setdefault(code, value)
    client, server = (_identifier(options.pop(code, b"")) for code in (CLIENT_ID, SERVER_ID))
    xid = int.from_bytes(data[1:4], "big")
    return Message(data[0], xid, client, server, tuple(associations), options, source)


def addresses(value: bytes) -> list[IPv6Address]:
    """Return the addresses of an option that is a list of them."""
    return [IPv6Address(value[at : at + 16]) for at in range(0, len(value) - 15, 16)]


def ntp_servers(value: bytes) -> list[IPv6Address]:
    """Return the addresses in NTP_SERVERS, which may also have names. Raises MalformedError."""
    found = [part for code, part in _each_option(value) if code == _NTP_SERVER_ADDRESS]
    return [IPv6Address(part) for part in found if len(part) == 16]


def elapsed(seconds: float) -> bytes:
    """Return the value of ELAPSED, in hundredths of a second."""
    return min(int(seconds * 100), _HUNDREDTHS_MAX).to_bytes(2, "big")


def codes(wanted: Sequence[int]) -> bytes:
    """Return the value of REQUESTED."""
    return b"".join(code.to_bytes(2, "big") for code in wanted)


def _association_bytes(one: Association) -> bytes:
    parts = [_ASSOCIATION.pack(one.number, one.renew, one.rebind)]
    for given in one.addresses:
        body = _ADDRESS.pack(given.address.packed, given.preferred, given.valid)
        parts.append(_encoded(IA_ADDRESS, body))
    if one.status != Status():
        text = one.status.text.encode("utf-8", "replace")
        parts.append(_encoded(STATUS, one.status.code.to_bytes(2, "big") + text))
    return b"".join(parts)


def _association_in(value: bytes) -> Association:
    if len(value) < _ASSOCIATION.size:
        raise MalformedError("an association that is cut short")
    number, renew, rebind = _ASSOCIATION.unpack_from(value)
    given: list[Given] = []
    status = Status()
    for code, part in _each_option(value[_ASSOCIATION.size :]):
        if code == IA_ADDRESS:
            given += _given_in(part)
        elif code == STATUS:
            status = _status(part)
    return Association(number, renew, rebind, tuple(given), status)


def _given_in(value: bytes) -> Iterator[Given]:
    """Yield the address of an IA_ADDRESS, unless the server says that it gives none."""
    if len(value) < _ADDRESS.size:
        raise MalformedError("an address that is cut short")
    packed, preferred, valid = _ADDRESS.unpack_from(value)
    for code, part in _each_option(value[_ADDRESS.size :]):
        if code == STATUS and _status(part).code != SUCCESS:
            return
    yield Given(IPv6Address(packed), preferred, valid)


def _status(value: bytes) -> Status:
    return Status(int.from_bytes(value[:2], "big"), printable(value[2:]))


def _identifier(value: bytes) -> bytes:
    if len(value) > _IDENTIFIER_MAX:
        raise MalformedError("an identifier that is too long")
    return value


def _encoded(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value


def _each_option(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        if at + _OPTION.size > len(data):
            raise MalformedError("an option without length")
        code, length = _OPTION.unpack_from(data, at)
        at += _OPTION.size
        if at + length > len(data):
            raise MalformedError(f"option {code} is cut short")
        yield code, data[at : at + length]
        at += length
