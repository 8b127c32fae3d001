"""The facts in the record of a firewall attachment."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING

from plugins.firewall.conf import ADMIN_CHAIN, OPEN, ZONE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cni_common.spec.names import Address


@dataclass(frozen=True, slots=True)
class FirewallFacts:
    """Rules that let packets from and to addresses through."""

    PART = "firewall"
    backend: str = ""  # nftables, iptables or firewalld
    addresses: Sequence[str] = ()  # of the container
    admin_chain: str = ADMIN_CHAIN
    zone: str = ZONE  # of firewalld
    bus: str = ""  # where ADD has found firewalld, "" for the usual place
    # Of the rules in nftables; none where another attachment has them, too.
    handles: Sequence[int] = field(default_factory=list)
    in_zone: bool = True  # false where firewalld has refused the addresses

    @property
    def parsed(self) -> list[Address]:
        """The addresses."""
        return [ip_address(text) for text in self.addresses]

    @property
    def versions(self) -> list[int]:
        """Their IP versions."""
        return sorted({address.version for address in self.parsed})

    def handles_of(self, version: int) -> Sequence[int]:
        """Return the handles of the rules of one IP version; IPv4's are the first."""
        split = 2 * sum(address.version == 4 for address in self.parsed)
        return self.handles[:split] if version == 4 else self.handles[split:]

    def environ(self, environ: Mapping[str, str]) -> Mapping[str, str]:
        """Return the variables by which ADD has found firewalld."""
        return {**environ, "DBUS_SYSTEM_BUS_ADDRESS": self.bus} if self.bus else environ


@dataclass(frozen=True, slots=True)
class IsolationFacts:
    """An ingress policy, for which a bridge is kept apart from others."""

    PART = "isolation"
    policy: str = OPEN
    bridge: str = ""
    port: str = ""  # of the bridge, where the policy concerns that, too
    found: bool = False  # by iptables: whether rules were there that no record tells of
