"""The tracked connections of a container, in the host's namespace."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

ENTRIES_MAX = 10_000  # pyroute2 takes 0.1 ms to decode one
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
_TALKERS = 5
_UNREPLIED_MASK = 1 << 1  # IPS_SEEN_REPLY of linux/netfilter/nf_conntrack_common.h


@dataclass(frozen=True, slots=True)
class Talker:
    """A peer of the container."""

    peer: str
    connections: int
    bytes: int | None  # both ways; None: the node does not count them (nf_conntrack_acct)


@dataclass(frozen=True, slots=True)
class Tracked:
    """The tracked connections of some addresses."""

    total: int  # on the node, of all
    limit: int  # of the node
    counts: dict[str, int] | None  # by protocol; None: there are more than ENTRIES_MAX on the node
    unreplied: int = 0  # of which no packet has come back
    talkers: tuple[Talker, ...] = ()  # those with the most bytes, or connections


def connections(addresses: Collection[str]) -> Tracked:
    """Return the connections from or to `addresses`. Raises OSError, NetlinkError."""
    from pyroute2 import Conntrack
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

    with Conntrack() as tracked:
        total, limit = int(tracked.count() or 0), int(tracked.conntrack_max_size() or 0)
    if total > ENTRIES_MAX:
        return Tracked(total, limit, None)
    with NFCTSocket() as table:
        found = [one for one in map(_ends, table.dump()) if one.addresses & set(addresses)]
    counts = Counter(one.protocol for one in found)
    peers: dict[str, list[_Ends]] = {}
    for one in found:
        for peer in one.peers(addresses):
            peers.setdefault(peer, []).append(one)
    talkers = [_talker(peer, of_peer) for peer, of_peer in peers.items()]
    talkers.sort(key=lambda one: (-(one.bytes or 0), -one.connections, one.peer))
    unreplied = sum(not one.replied for one in found)
    return Tracked(total, limit, dict(sorted(counts.items())), unreplied, tuple(talkers[:_TALKERS]))


@dataclass(frozen=True, slots=True)
class _Ends:
    protocol: str
    source: str
    destination: str  # as the source knows it
    answering: str  # as it is
    replied: bool
    bytes: int | None

    @property
    def addresses(self) -> set[str]:
        return {self.source, self.destination, self.answering}

    def peers(self, own: Collection[str]) -> list[str]:
        """Return the other end; none of a connection of the container with itself."""
        if self.source not in own:
            return [self.source]
        return [] if self.answering in own else [self.destination]


def _ends(message: Any) -> _Ends:
    original, reply = message.get_attr("CTA_TUPLE_ORIG"), message.get_attr("CTA_TUPLE_REPLY")
    number = original.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_NUM")
    source, destination = _addresses_of(original)
    counters = [message.get_attr(f"CTA_COUNTERS_{direction}") for direction in ("ORIG", "REPLY")]
    counted = [one.get_attr("CTA_COUNTERS_BYTES") for one in counters if one]
    return _Ends(
        _PROTOCOLS.get(number, f"protocol {number}"),
        source,
        destination,
        _addresses_of(reply)[0],
        bool((message.get_attr("CTA_STATUS") or 0) & _UNREPLIED_MASK),
        sum(map(int, counted)) if counted else None,
    )


def _addresses_of(half: Any) -> tuple[str, str]:
    ip = half.get_attr("CTA_TUPLE_IP")
    version = "V4" if ip.get_attr("CTA_IP_V4_SRC") else "V6"
    return str(ip.get_attr(f"CTA_IP_{version}_SRC")), str(ip.get_attr(f"CTA_IP_{version}_DST"))


def _talker(peer: str, found: list[_Ends]) -> Talker:
    counted = [one.bytes for one in found if one.bytes is not None]
    return Talker(peer, len(found), sum(counted) if counted else None)
