"""DHCPv4, as plugins.dhcp.daemon.family has it."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from plugins.dhcp.daemon.v4.answer import facts_of, interface_of, result_of
from plugins.dhcp.daemon.v4.machine import Machine, Profile
from plugins.dhcp.daemon.v4.talk import Talk, send_from_host

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from plugins.dhcp.daemon.machine import Lease, Pace, Send
    from plugins.dhcp.daemon.store import Entry

__all__ = [
    "VERIFIES_AT_START",
    "client_id_of",
    "facts_of",
    "interface_of",
    "machine_of",
    "prepare",
    "release_from_host",
    "result_of",
    "talk_over",
]

VERIFIES_AT_START = False
_CLIENT_TEXT_MAX = 254  # bytes of a client identifier behind its type (RFC 2132 section 9.14)


def machine_of(
    entry: Entry, pace: Pace, random: Callable[[], float], lease: Lease | None
) -> Machine:
    """Return the machine of an attachment, which has a lease or none."""
    profile = Profile(
        entry.mac, client_id_of(entry), entry.provided, entry.requested, entry.broadcast
    )
    return Machine(profile, pace, random, lease)


def client_id_of(entry: Entry) -> bytes:
    """Return the client identifier: type 0 and the attachment, hashed where that is too long."""
    text = entry.key.name.encode("utf-8", "surrogateescape")
    if len(text) > _CLIENT_TEXT_MAX:
        import hashlib

        digest = b"/" + hashlib.sha256(text).hexdigest().encode()
        text = text[: _CLIENT_TEXT_MAX - len(digest)] + digest
    return b"\0" + text


def talk_over(netns: NetNS, ours: Link) -> Talk:
    """Return sockets over an interface, which own the handle of its namespace. Raises OSError."""
    return Talk(netns, ours)


def prepare(netns: NetNS, ours: Link) -> None:
    """Do nothing: each interface is fit for DHCPv4."""


def release_from_host(_host: NetNS, _entry: Entry, action: Send) -> None:
    """Send a release by the host's routes: the interface is gone. Raises OSError."""
    assert isinstance(action.server, IPv4Address)
    send_from_host(action.server, action.message.encode())
