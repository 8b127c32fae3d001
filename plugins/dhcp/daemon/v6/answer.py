"""The content of a DHCPv6 lease as the result of an IPAM plugin (SPEC.md section 5)."""

from __future__ import annotations

from ipaddress import IPv6Interface
from typing import TYPE_CHECKING

from plugins.dhcp.daemon import options
from plugins.dhcp.daemon.options import MalformedError
from plugins.dhcp.daemon.v6 import packet

if TYPE_CHECKING:
    from typing import Any

    from plugins.dhcp.daemon.machine import Lease


def result_of(lease: Lease, _priority: int) -> dict[str, Any]:
    """Return the result of CNI 1.1.0: DHCPv6 has neither routes nor gateways nor an MTU."""
    ip = {"address": str(interface_of(lease))}
    return {"cniVersion": "1.1.0", "ips": [ip], "routes": [], "dns": _dns(lease)}


def interface_of(lease: Lease) -> IPv6Interface:
    """Return the address alone: the link's prefixes are up to router advertisements."""
    return IPv6Interface((int(lease.address), 128))


def facts_of(lease: Lease) -> dict[str, Any]:
    """Return what a server has said and a result has no place for, for people."""
    try:
        servers = packet.ntp_servers(lease.options.get(packet.NTP_SERVERS, b""))
    except MalformedError:
        servers = []
    return {"ntp": [str(one) for one in servers]} if servers else {}


def _dns(lease: Lease) -> dict[str, Any]:
    try:
        search = options.domains(lease.options.get(packet.DOMAINS, b""))
    except MalformedError:
        search = []
    servers = packet.addresses(lease.options.get(packet.DNS_SERVERS, b""))
    told = {"nameservers": [str(one) for one in servers], "search": search}
    return {key: value for key, value in told.items() if value}
