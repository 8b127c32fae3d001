"""The cluster as a node needs it: its members, their addresses and the ranges of their pods."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Member:
    """A node of the cluster, from its Node object.

    `addresses` are those of type InternalIP, at most one for each family, `ranges` are
    `spec.podCIDRs`. `public_key` is the node's WireGuard key in base64, or "" where it has none.
    """

    name: str
    uid: str
    addresses: tuple[Address, ...] = ()
    ranges: tuple[Network, ...] = ()
    public_key: str = ""

    def address(self, version: int) -> Address | None:
        """The node's address of family `version` (4 or 6), None where the node has none."""
        return next((item for item in self.addresses if item.version == version), None)


@dataclass(frozen=True)
class Cluster:
    """All members at one moment: the node itself, and the others sorted by name."""

    own: Member
    others: tuple[Member, ...] = ()
