"""Decides which ranges of which nodes can be routed: pure, by the cluster alone."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from agent.cluster import Address, Cluster, Member, Network


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node, and those of its ranges to which routes may lead."""

    member: Member
    ranges: tuple[Network, ...]


def underlay(own: Member) -> int:
    """Return the IP version between the nodes of an overlay, 0 for a node without an address.

    All nodes must agree: IPv4 wherever a node has such an address.
    """
    return next((version for version in (4, 6) if own.address(version)), 0)


def peers(cluster: Cluster, local: Collection[Address]) -> tuple[list[Peer], list[str]]:
    """Return the other nodes with their sound ranges, and a sentence for what is left out.

    `local` are the addresses of this node in the kernel. Left out are nodes with such an address,
    ranges that overlap with those of this node or of one that comes before in the order of names,
    and ranges that contain a node's own address: a route to these would cut the nodes off.
    """
    taken = _Ranges()
    for network in cluster.own.ranges:
        taken.claim(network, cluster.own.name)
    nodes = _Addresses([cluster.own, *cluster.others])
    found, problems = [], []
    for member in cluster.others:
        shared = [str(one) for one in member.addresses if one in local]
        if shared:
            problems.append(
                f"node '{member.name}' has an address of this node, {shared[0]}: there are no"
                f" routes to its pods; delete the Node object that is out of date"
            )
            continue
        sound = []
        for network in member.ranges:
            words = nodes.within(network) or taken.claim(network, member.name)
            if words:
                problems.append(f"no route to the pods of node '{member.name}', {network}: {words}")
            else:
                sound.append(network)
        found.append(Peer(member, tuple(sound)))
    return found, problems


class _Ranges:
    """Ranges without overlap, by IP version: first and last address, in order."""

    def __init__(self) -> None:
        self._ranges: dict[int, list[tuple[int, int, Network, str]]] = {4: [], 6: []}

    def claim(self, network: Network, node: str) -> str:
        """Take a range for a node; return why that is impossible, or ""."""
        first, last = int(network.network_address), int(network.broadcast_address)
        ranges = self._ranges[network.version]
        at = bisect_left(ranges, first, key=lambda one: one[0])
        for one in ranges[max(at - 1, 0) : at + 1]:
            if one[0] <= last and first <= one[1]:
                return (
                    f"it overlaps with {one[2]} of node '{one[3]}'; give each node a podCIDR of its"
                    " own"
                )
        insort(ranges, (first, last, network, node), key=lambda one: one[0])
        return ""


class _Addresses:
    """The addresses of all nodes, by IP version, in order."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._numbers: dict[int, list[int]] = {4: [], 6: []}
        for member in members:
            for address in member.addresses:
                self._numbers[address.version].append(int(address))
        for numbers in self._numbers.values():
            numbers.sort()

    def within(self, network: Network) -> str:
        """Return words if a node's address is in the range, or ""."""
        numbers = self._numbers[network.version]
        first = bisect_left(numbers, int(network.network_address))
        if first == bisect_right(numbers, int(network.broadcast_address)):
            return ""
        address = type(network.network_address)(numbers[first])
        return f"the address of a node, {address}, is in it; give pods a range of their own"
