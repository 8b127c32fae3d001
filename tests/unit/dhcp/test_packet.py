"""DHCP messages as bytes, and in IP packets."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.dhcp.daemon import options
from plugins.dhcp.daemon.options import MalformedError
from plugins.dhcp.daemon.v4 import frame, packet
from plugins.dhcp.daemon.v4.packet import Message

ADDRESSES = st.integers(0, 2**32 - 1).map(IPv4Address)
CODES = st.integers(1, 254).filter(lambda code: code not in (packet.OVERLOAD, packet.MESSAGE_TYPE))
MESSAGES = st.builds(
    Message,
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=6, max_size=6).map(lambda mac: mac.hex(":")),
    st.booleans(),
    st.integers(0, 0xFFFF),
    st.booleans(),
    ADDRESSES,
    ADDRESSES,
    ADDRESSES,
    st.dictionaries(CODES, st.binary(max_size=600), max_size=4),
)
SERVER, CLIENT = IPv4Address("192.0.2.2"), IPv4Address("192.0.2.50")


@given(MESSAGES)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    """Long options are split and joined again (RFC 3396); no message is shorter than BOOTP's."""
    data = message.encode()

    assert packet.decode(data) == message
    assert len(data) >= 300


@given(st.binary(max_size=700), MESSAGES, st.integers(0, 400))
def test_no_bytes_do_harm(rest: bytes, message: Message, at: int) -> None:
    """Any bytes are a message or MalformedError; so are their routes and domains."""
    for data in (rest, message.encode()[:at] + rest, message.encode() + rest):
        try:
            found = packet.decode(data)
        except MalformedError:
            continue
        assert found.kind in range(256)
    for parse in (packet.classless_routes, packet.static_routes, options.domains):
        try:
            parse(rest)
        except MalformedError:
            continue


def test_options_in_other_fields() -> None:
    """An overloaded message has options in `file` and `sname`, too (RFC 2132 section 9.3)."""
    data = bytearray(Message(packet.ACK, 1, "02:00:00:00:00:01", is_reply=True).encode()[:240])
    data += bytes([packet.MESSAGE_TYPE, 1, packet.ACK, packet.OVERLOAD, 1, 3, packet.END])
    data[108 : 108 + 7] = bytes([packet.DOMAIN, 4]) + b"exam" + bytes([packet.END])
    data[44 : 44 + 6] = bytes([packet.DOMAIN, 3]) + b"ple" + bytes([packet.END])

    assert packet.decode(bytes(data)).text(packet.DOMAIN) == "example"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("00c0000202", [("0.0.0.0/0", "192.0.2.2")]),
        ("180a0102c0000202", [("10.1.2.0/24", "192.0.2.2")]),
        ("1e0a010204c0000202", [("10.1.2.4/30", "192.0.2.2")]),
        ("20c000020900000000", [("192.0.2.9/32", "0.0.0.0")]),
        ("100a01c000020200c0000203", [("10.1.0.0/16", "192.0.2.2"), ("0.0.0.0/0", "192.0.2.3")]),
    ],
)
def test_classless_routes(value: str, expected: list[tuple[str, str]]) -> None:
    """The significant octets of a destination alone are there (RFC 3442)."""
    found = packet.classless_routes(bytes.fromhex(value))

    assert [(str(network), str(router)) for network, router in found] == expected


@pytest.mark.parametrize("value", ["21", "180a01", "00c00002", "ff"])
def test_classless_routes_that_are_none(value: str) -> None:
    """A width above 32, or too few octets."""
    with pytest.raises(MalformedError):
        packet.classless_routes(bytes.fromhex(value))


def test_static_routes() -> None:
    """Their destinations are classful (RFC 2132 section 5.8)."""
    pairs = [("10.1.2.3", "10.0.0.0/8"), ("172.16.5.5", "172.16.0.0/16")]
    value = b"".join(IPv4Address(one).packed + SERVER.packed for one, _ in pairs)

    found = packet.static_routes(value + b"rest")

    assert found == [(IPv4Network(network), SERVER) for _, network in pairs]


def test_domains() -> None:
    """Names may point at parts of names before them (RFC 3397)."""
    value = b"\3eng\7example\3com\0\5sales\xc0\4"

    assert options.domains(value) == ["eng.example.com", "sales.example.com"]


@pytest.mark.parametrize("value", [b"\xc0\0", b"\3a", b"\3a\nb\0", b"\1a", b"\3a b\0", b"\x40"])
def test_domains_that_are_none(value: bytes) -> None:
    """A circle, names that do not end, and characters that would be a line of resolv.conf."""
    with pytest.raises(MalformedError):
        options.domains(value)


def test_text_is_one_line() -> None:
    """A server cannot write further lines into a file of the container."""
    message = Message(packet.ACK, 1, "02:00:00:00:00:01", options={packet.DOMAIN: b"a\nb\0\0"})

    assert message.text(packet.DOMAIN) == "ab"


# --- in IP packets ---


def reply(payload: bytes, *, checksum: int | None = None, port: int = 67) -> bytes:
    """Return a packet from the server to the client, by struct alone."""
    length = 8 + len(payload)
    pseudo = SERVER.packed + CLIENT.packed + struct.pack("!BBH", 0, 17, length)
    udp = struct.pack("!HHHH", port, 68, length, 0)
    total = checksum if checksum is not None else sum_of(pseudo + udp + payload)
    udp = struct.pack("!HHHH", port, 68, length, total)
    head = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 7, 0, 64, 17, 0))
    head += SERVER.packed + CLIENT.packed
    head[10:12] = sum_of(bytes(head)).to_bytes(2, "big")
    return bytes(head) + udp + payload


def sum_of(data: bytes) -> int:
    """Return the checksum of RFC 1071, octet by octet."""
    total = sum(byte << (0 if at % 2 else 8) for at, byte in enumerate(data))
    while total > 0xFFFF:
        total = total % 0x10000 + total // 0x10000
    return total ^ 0xFFFF


@given(st.binary(max_size=99))
def test_an_answer_is_understood(payload: bytes) -> None:
    """Its payload and source are found, also before padding of short Ethernet frames."""
    found = frame.decode(reply(payload) + bytes(7))

    assert found == frame.Datagram(SERVER, payload)


@given(st.binary(max_size=99), st.integers(0), st.integers(1, 255))
def test_a_damaged_answer_is_dropped(payload: bytes, at: int, flip: int) -> None:
    """Each damage of a byte is noticed by one of the checksums."""
    data = bytearray(reply(payload))
    data[at % len(data)] ^= flip

    assert frame.decode(bytes(data)) is None


def test_checksums_that_are_not_there() -> None:
    """UDP may have none, and between two interfaces of one host the kernel computes none."""
    assert frame.decode(reply(b"x", checksum=0)) is not None
    assert frame.decode(reply(b"x", checksum=5)) is None
    assert frame.decode(reply(b"x", checksum=5), is_checked=True) is not None


@pytest.mark.parametrize("data", [b"", reply(b"x")[:27], reply(b"x", port=53), bytes(60)])
def test_other_packets(data: bytes) -> None:
    """A packet that is cut short, of another port or no IPv4 is no answer."""
    assert frame.decode(data) is None


@given(st.binary(max_size=99), st.binary(max_size=99))
def test_no_bytes_of_a_packet_do_harm(data: bytes, rest: bytes) -> None:
    """Any bytes are an answer or None."""
    frame.decode(data)
    frame.decode(reply(rest)[: len(data)] + data)


@given(st.binary(max_size=99))
def test_a_request_has_right_checksums(payload: bytes) -> None:
    """Both sums over what is sent are those of RFC 1071."""
    data = frame.encode(CLIENT, SERVER, payload)
    pseudo = CLIENT.packed + SERVER.packed + struct.pack("!BBH", 0, 17, len(data) - 20)

    assert sum_of(data[:20]) == 0
    assert sum_of(pseudo + data[20:]) == 0
