"""DHCPv6 messages as bytes."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.dhcp.daemon.options import MalformedError
from plugins.dhcp.daemon.v6 import packet
from plugins.dhcp.daemon.v6.packet import Association, Given, Message, Status

ADDRESSES = st.integers(0, 2**128 - 1).map(IPv6Address)
SECONDS = st.integers(0, 2**32 - 1)
TEXTS = st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"]), max_size=9)
ASSOCIATIONS = st.builds(
    Association,
    SECONDS,
    SECONDS,
    SECONDS,
    st.lists(st.builds(Given, ADDRESSES, SECONDS, SECONDS), max_size=3).map(tuple),
    st.builds(Status, st.integers(1, 9), TEXTS),
)
CODES = st.integers(4, 2**16 - 1)
MESSAGES = st.builds(
    Message,
    st.integers(packet.SOLICIT, packet.DECLINE),
    st.integers(0, 2**24 - 1),
    st.binary(max_size=130),
    st.binary(max_size=130),
    st.lists(ASSOCIATIONS, max_size=2).map(tuple),
    st.dictionaries(CODES, st.binary(max_size=600), max_size=4),
)


@given(MESSAGES)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    """All of it."""
    assert packet.decode(message.encode()) == message


@given(st.binary(max_size=300), MESSAGES, st.integers(0, 400))
def test_no_bytes_do_harm(rest: bytes, message: Message, at: int) -> None:
    """Any bytes are a message or MalformedError."""
    for data in (rest, message.encode()[:at] + rest, message.encode() + rest):
        try:
            found = packet.decode(data)
        except MalformedError:
            continue
        assert 0 <= found.preference <= 255
        assert str(found.status).isprintable()
    packet.addresses(rest)
    with suppress(MalformedError):
        packet.ntp_servers(rest)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1\0\0",
        b"\x0c\0\0\0",  # of a relay
        b"\0\0\0\0",
        b"\2\0\0\0\0\1",
        b"\2\0\0\0\0\1\0\5abc",
        b"\2\0\0\0\0\3\0\4abcd",  # half an association
        b"\2\0\0\0\0\3\0\x14" + bytes(12) + b"\0\5\0\4abcd",  # half an address
        b"\2\0\0\0\0\1\0\x83" + bytes(131),  # an identifier that is too long
    ],
)
def test_malformed(data: bytes) -> None:
    """It is refused as a whole."""
    with pytest.raises(MalformedError):
        packet.decode(data)


def test_an_address_that_is_refused() -> None:
    """A status in the address's own options counts."""
    address = IPv6Address("2001:db8::1").packed + bytes(7) + b"\1" + b"\0\r\0\2\0\2"
    option = b"\0\5" + len(address).to_bytes(2, "big") + address
    body = bytes(12) + option + option[:3] + bytes([24]) + address[:24]
    data = b"\2\0\0\1" + b"\0\3" + len(body).to_bytes(2, "big") + body

    (association,) = packet.decode(data).associations

    assert [str(one.address) for one in association.addresses] == ["2001:db8::1"]


def test_words_for_people() -> None:
    """A status has a name, if it is a known one, and the server's words without control codes."""
    assert str(Status(2, "full")) == "NoAddrsAvail, full"
    assert str(Status(99)) == "status 99"
    found = packet.decode(Message(7, 1, options={13: b"\0\1a\nb\0"}).encode())
    assert found.status == Status(1, "ab")


def test_times_and_servers() -> None:
    """Hundredths of a second, at most what fits; NTP servers that have an address."""
    assert packet.elapsed(1.25) == bytes([0, 125])
    assert packet.elapsed(1e9) == b"\xff\xff"
    ntp = b"\0\1\0\x10" + IPv6Address("2001:db8::7").packed + b"\0\3\0\5\3ntp\0"
    assert packet.ntp_servers(ntp) == [IPv6Address("2001:db8::7")]
