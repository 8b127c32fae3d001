"""The fields of a Node object that the agent keeps: all others are dropped at once."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import msgspec
from lightkube.core.resource import ApiInfo, GlobalResource, ResourceDef

from agent.cluster import Address, Member, Network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# The Node's annotation that holds its WireGuard public key, in base64.
PUBLIC_KEY = "pycni/wireguard-public-key"
_INTERNAL = "InternalIP"
_RANGES_MAX = 8  # Kubernetes gives one for each family
_ADDRESSES_MAX = 64  # of a Node, of all types
_KEY_MAX = 64  # characters; a key has 44, and an annotation may have 256 KiB
# A range of fewer bits is no node's: the controller manager splits a cluster's range into 65,536 at
# most. A route or an exception from masquerading for it would take the packets of half the world.
_PREFIX_MIN = {4: 8, 6: 32}


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


def source_of(node: Node) -> tuple[str, ...]:
    """Return all texts of a Node that `member_of` reads: a Node that has the same is the same."""
    spec, status = node.spec, node.status
    addresses = (status.addresses or ()) if status else ()
    return (
        node.metadata.uid,
        (node.metadata.annotations or {}).get(PUBLIC_KEY, "")[:_KEY_MAX],
        *((spec.podCIDRs or [spec.podCIDR])[:_RANGES_MAX] if spec else ()),
        *(item.address for item in addresses[:_ADDRESSES_MAX] if item.type == _INTERNAL),
    )


def member_of(node: Node, tell: Callable[[str], object] = lambda _text: None) -> Member:
    """Return what is needed of a Node. A range or address that can be no node's is left out.

    `tell` gets a sentence for each range or address that is left out.
    """
    metadata, spec, status = node.metadata, node.spec, node.status

    def refuse(what: str) -> None:
        tell(f"node '{metadata.name}': {what}; it is not used")

    ranges = (spec.podCIDRs or [spec.podCIDR]) if spec else []
    addresses = (status.addresses or [])[:_ADDRESSES_MAX] if status else []
    return Member(
        name=metadata.name,
        uid=metadata.uid,
        addresses=_one_of_each_family(
            (item.address for item in addresses if item.type == _INTERNAL), refuse
        ),
        ranges=_networks(ranges[:_RANGES_MAX], refuse),
        public_key=(metadata.annotations or {}).get(PUBLIC_KEY, "")[:_KEY_MAX],
    )


def runtime_of(node: Node) -> str:
    """Return name and version of the container runtime of a Node, "" where it is not known."""
    info = node.status.nodeInfo if node.status else None
    return info.containerRuntimeVersion if info else ""


def _one_of_each_family(
    texts: Iterable[str], refuse: Callable[[str], object]
) -> tuple[Address, ...]:
    found: dict[int, Address] = {}
    for text in texts:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            refuse(f"its InternalIP {text!r:.100} is no address")
            continue
        if _is_unusual(address):
            refuse(f"its InternalIP {text} is no address by which other nodes reach it")
            continue
        found.setdefault(address.version, address)
    return tuple(found[version] for version in sorted(found))


def _networks(texts: Iterable[str], refuse: Callable[[str], object]) -> tuple[Network, ...]:
    found = []
    for text in filter(None, texts):
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            refuse(f"its podCIDR {text!r:.100} is no range")
            continue
        if network.prefixlen < _PREFIX_MIN[network.version]:
            refuse(f"its podCIDR {text} has fewer than {_PREFIX_MIN[network.version]} bits")
        elif _is_unusual(network.network_address):
            refuse(f"its podCIDR {text} is no range for pods")
        else:
            found.append(network)
    return tuple(found)


def _is_unusual(address: Address) -> bool:
    """Tell whether an address has a meaning of its own, or is of one link."""
    if address.is_multicast or address.is_loopback or address.is_link_local:
        return True
    return address.is_unspecified or bool(getattr(address, "scope_id", None))
