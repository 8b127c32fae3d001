"""DHCPv6, as plugins.dhcp.daemon.family has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.node import veth
from plugins.dhcp.daemon.v6.answer import facts_of, interface_of, result_of
from plugins.dhcp.daemon.v6.machine import Machine, Profile
from plugins.dhcp.daemon.v6.talk import Talk, send_from_host

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from plugins.dhcp.daemon.machine import Lease, Pace, Send
    from plugins.dhcp.daemon.store import Entry

__all__ = [
    "VERIFIES_AT_START",
    "facts_of",
    "identifier_of",
    "interface_of",
    "machine_of",
    "prepare",
    "release_from_host",
    "result_of",
    "talk_over",
]

VERIFIES_AT_START = True  # by a Confirm (RFC 8415 section 18.2.12)
_DUID_UUID = b"\0\4"  # RFC 6355
_IAID = 1  # each attachment is a client of its own, with one interface


def machine_of(
    entry: Entry, pace: Pace, random: Callable[[], float], lease: Lease | None
) -> Machine:
    """Return the machine of an attachment, which has a lease or none."""
    return Machine(Profile(identifier_of(entry), _IAID), pace, random, lease)


def identifier_of(entry: Entry) -> bytes:
    """Return the DUID: a UUID of version 8 (RFC 9562), from a hash of the attachment's names."""
    import hashlib

    text = entry.key.name.encode("utf-8", "surrogateescape")
    digest = bytearray(hashlib.sha256(text).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return _DUID_UUID + bytes(digest)


def talk_over(netns: NetNS, ours: Link) -> Talk:
    """Return sockets over an interface, which own the handle of its namespace. Raises OSError."""
    return Talk(netns, ours)


def prepare(netns: NetNS, ours: Link) -> None:
    """Have an interface that is about to be up get a link-local address, and heed routers.

    DHCPv6 gives an address alone; its routes are those that routers advertise, also to a container
    that forwards packets (accept_ra 2). The advertisements add no address of their own. Raises
    CNIError.
    """
    conf = f"net/ipv6/conf/{ours.name}"
    wanted = {f"{conf}/accept_ra": "2", f"{conf}/autoconf": "0"}
    veth.set_sysctls(netns, wanted, {f"{conf}/disable_ipv6": "0"})


def release_from_host(host: NetNS, entry: Entry, action: Send) -> None:
    """Send a release over the host's interface on that link. Raises OSError."""
    send_from_host(host, entry.via, action)
