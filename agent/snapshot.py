"""The cluster at one moment, what follows from it, and its form on the disk."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.cluster import Cluster, Member

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.cluster import Network


@dataclass(frozen=True)
class Snapshot:
    """The cluster at one moment, and the runtime of the own node as the kubelet reports it.

    `runtime` is such as "containerd://2.4.2", "" where it is not known.
    """

    cluster: Cluster
    runtime: str = ""


def cluster_of(own: Member, members: Iterable[Member]) -> Cluster:
    """Return the cluster around `own`: of `members` the others, by name."""
    others = sorted((one for one in members if one.name != own.name), key=lambda one: one.name)
    return Cluster(own, tuple(others))


def overlaps(cluster: Cluster) -> tuple[tuple[Network, Member, Network], ...]:
    """Return each own range that overlaps a range of another node: own range, node, its range."""
    return tuple(
        (own, other, theirs)
        for own in cluster.own.ranges
        for other in cluster.others
        for theirs in other.ranges
        if own.version == theirs.version and own.overlaps(theirs)
    )


# --- the form on the disk ---


def to_json(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as JSON has it."""
    return {
        "runtime": snapshot.runtime,
        "own": _member_to_json(snapshot.cluster.own),
        "others": [_member_to_json(one) for one in snapshot.cluster.others],
    }


def from_json(data: dict[str, Any]) -> Snapshot:
    """Return the snapshot that `to_json` has written. Raises KeyError, TypeError, ValueError."""
    others = tuple(_member_from_json(one) for one in data["others"])
    return Snapshot(Cluster(_member_from_json(data["own"]), others), str(data["runtime"]))


def _member_to_json(member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "uid": member.uid,
        "addresses": [str(one) for one in member.addresses],
        "ranges": [str(one) for one in member.ranges],
        "public_key": member.public_key,
    }


def _member_from_json(data: dict[str, Any]) -> Member:
    return Member(
        name=str(data["name"]),
        uid=str(data["uid"]),
        addresses=tuple(ipaddress.ip_address(one) for one in data["addresses"]),
        ranges=tuple(ipaddress.ip_network(one) for one in data["ranges"]),
        public_key=str(data["public_key"]),
    )
