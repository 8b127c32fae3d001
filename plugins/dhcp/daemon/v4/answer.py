"""The content of a DHCPv4 lease as the result of an IPAM plugin (SPEC.md section 5)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TYPE_CHECKING

from plugins.dhcp.daemon import options
from plugins.dhcp.daemon.options import MalformedError
from plugins.dhcp.daemon.v4 import packet
from plugins.dhcp.daemon.v4.packet import Message

if TYPE_CHECKING:
    from typing import Any

    from plugins.dhcp.daemon.machine import Lease

_EVERYTHING = IPv4Network("0.0.0.0/0")
_MTU_MIN, _MTU_MAX = 68, 65535  # bytes (RFC 2132 section 5.1)
_SCOPE_LINK = 253  # linux/rtnetlink.h


def result_of(lease: Lease, priority: int) -> dict[str, Any]:
    """Return the result of CNI 1.1.0; `priority` is the metric of all routes, 0: the kernel's.

    Raises MalformedError if the server has not given what an address needs.
    """
    ack = _options_of(lease)
    gateway = ack.address(packet.ROUTERS)
    ip = {"address": str(interface_of(lease))}
    routes = _routes(ack, gateway)
    mtu = ack.number(packet.MTU, 2) or 0
    for route in routes:
        if priority:
            route["priority"] = priority
        if _MTU_MIN <= mtu <= _MTU_MAX:
            route["mtu"] = mtu
    if gateway:
        ip["gateway"] = str(gateway)
    return {"cniVersion": "1.1.0", "ips": [ip], "routes": routes, "dns": _dns(ack)}


def interface_of(lease: Lease) -> IPv4Interface:
    """Return the address with its prefix. Raises MalformedError without a subnet mask."""
    mask = _options_of(lease).address(packet.SUBNET_MASK)
    if mask is None:
        raise MalformedError(f"DHCP server {lease.server} gives no subnet mask (option 1)")
    try:
        return IPv4Interface(f"{lease.address}/{mask}")
    except ValueError:
        raise MalformedError(f"DHCP server {lease.server} gives subnet mask {mask}") from None


def facts_of(lease: Lease) -> dict[str, Any]:
    """Return what a server has said and a result has no place for, for people."""
    ack = _options_of(lease)
    told = {
        "ntp": [str(one) for one in ack.addresses(packet.NTP_SERVERS)],
        "mtu": ack.number(packet.MTU, 2),
        "hostname": ack.text(packet.HOST_NAME),
    }
    return {key: value for key, value in told.items() if value}


def _routes(ack: Message, gateway: IPv4Address | None) -> list[dict[str, Any]]:
    """Return the classless routes alone, or else the static ones and the default route."""
    value = ack.options.get(packet.CLASSLESS_ROUTES, b"")
    if value:  # RFC 3442: the other two options must be ignored then
        found = packet.classless_routes(value)
    else:
        found = packet.static_routes(ack.options.get(packet.STATIC_ROUTES, b""))
        found = [one for one in found if int(one[0].network_address)]  # an illegal one
        if gateway:
            found.append((_EVERYTHING, gateway))
    routes: list[dict[str, Any]] = []
    for destination, router in found:
        route: dict[str, Any] = {"dst": str(destination), "gw": str(router)}
        if not int(router):  # the destination is on the link (RFC 3442)
            route["scope"] = _SCOPE_LINK
        routes.append(route)
    return routes


def _dns(ack: Message) -> dict[str, Any]:
    try:
        search = options.domains(ack.options.get(packet.DOMAIN_SEARCH, b""))
    except MalformedError:
        search = []
    told = {
        "nameservers": [str(one) for one in ack.addresses(packet.DNS_SERVERS)],
        "domain": _domain(ack.text(packet.DOMAIN)),
        "search": search,
    }
    return {key: value for key, value in told.items() if value}


def _domain(text: str) -> str:
    """Return a domain, "" if it is none: a runtime writes it into a file of the container."""
    labels = text.removesuffix(".").split(".")
    is_whole = all(label.strip("-_") and options.is_label(label) for label in labels)
    return text if is_whole else ""


def _options_of(lease: Lease) -> Message:
    return Message(packet.ACK, 0, "00:00:00:00:00:00", options=lease.options)
