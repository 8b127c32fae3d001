"""What the agent keeps of a Node object: all else of it is dropped at once."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from lightkube.core.resource import ApiInfo, GlobalResource, ResourceDef

from agent.cluster import Address, Cluster, Member, Network

if TYPE_CHECKING:
    from collections.abc import Iterable

# The Node's annotation that holds its WireGuard public key, in base64.
PUBLIC_KEY = "pycni/wireguard-public-key"
_INTERNAL = "InternalIP"
_RANGES_MAX = 8  # Kubernetes gives one for each family


# --- the part of a Node that is decoded (Kubernetes API, core/v1) ---
# lightkube's own Node has all of it: images, conditions, managed fields.


class _Metadata(msgspec.Struct):
    """`metadata`."""

    name: str
    resourceVersion: str = ""  # noqa: N815 - the API's name, as those below
    uid: str = ""
    annotations: dict[str, str] | None = None


class _Spec(msgspec.Struct):
    """`spec`."""

    podCIDR: str = ""  # noqa: N815
    podCIDRs: list[str] | None = None  # noqa: N815


class _Address(msgspec.Struct):
    """A member of `status.addresses`."""

    type: str
    address: str


class _Info(msgspec.Struct):
    """`status.nodeInfo`."""

    containerRuntimeVersion: str = ""  # noqa: N815


class _Status(msgspec.Struct):
    """`status`."""

    addresses: list[_Address] | None = None
    nodeInfo: _Info | None = None  # noqa: N815


class Node(msgspec.Struct, GlobalResource):
    """A Node, as lightkube lists and watches it for the agent."""

    metadata: _Metadata
    spec: _Spec | None = None
    status: _Status | None = None

    _api_info = ApiInfo(
        resource=ResourceDef("", "v1", "Node"), plural="nodes", verbs=["list", "patch", "watch"]
    )


@dataclass(frozen=True)
class Snapshot:
    """The cluster at one moment, and the runtime of the own node as the kubelet reports it.

    `runtime` is such as "containerd://2.4.2", "" where it is not known.
    """

    cluster: Cluster
    runtime: str = ""


def member_of(node: Node) -> Member:
    """Return what is needed of a Node; a range or address that cannot be understood is left out."""
    metadata, spec, status = node.metadata, node.spec, node.status
    ranges = (spec.podCIDRs or [spec.podCIDR]) if spec else []
    addresses = (status.addresses or []) if status else []
    return Member(
        name=metadata.name,
        uid=metadata.uid,
        addresses=_one_of_each_family(item.address for item in addresses if item.type == _INTERNAL),
        ranges=_networks(ranges[:_RANGES_MAX]),
        public_key=(metadata.annotations or {}).get(PUBLIC_KEY, ""),
    )


def runtime_of(node: Node) -> str:
    """Return name and version of the container runtime of a Node, "" where it is not known."""
    info = node.status.nodeInfo if node.status else None
    return info.containerRuntimeVersion if info else ""


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


def _one_of_each_family(texts: Iterable[str]) -> tuple[Address, ...]:
    found: dict[int, Address] = {}
    for text in texts:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        found.setdefault(address.version, address)
    return tuple(found[version] for version in sorted(found))


def _networks(texts: Iterable[str]) -> tuple[Network, ...]:
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            continue
    return tuple(found)
