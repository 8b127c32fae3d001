"""The way between host and container: a gateway on the host's end, and host routes to it and back.

The container reaches everybody, its own subnet included, over the gateway. The same gateway stands
on the host's end of every pair, and a route on the host leads to each container's address.
"""

import errno
from functools import partial
from ipaddress import ip_interface, ip_network

from cni_common import interface
from cni_common.errors import CNIError, Code
from cni_common.netlink import NetlinkError
from cni_common.netns import NETLINK_ROUTE
from cni_common.route import (
    IFA_F_TENTATIVE,
    RT_SCOPE_HOST,
    RT_SCOPE_LINK,
    RTN_LOCAL,
    RTN_UNICAST,
    address_message,
    route_message,
)
from cni_common.rtnetlink import RTMGRP_IPV6_IFADDR
from cni_common.types import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_common.link import Link
    from cni_common.netlink import Message
    from cni_common.netns import NetNS
    from cni_common.types import Address, IPConfig, Subnet

_SECONDS = 1.0  # until the kernel has put an IPv6 address to use


def gateways(ips: "Sequence[IPConfig]") -> "list[Address]":
    """Return the gateway of each address, each once. Raises CNIError 7 where one is missing."""
    found: dict[Address, None] = {}
    for ip in ips:
        if ip.gateway is None:
            raise CNIError(
                Code.INVALID_CONFIG,
                f"IPAM gave no gateway for {ip.address}, and without one nothing leads out of a"
                " point-to-point link; have IPAM name one",
            )
        if ip.gateway == ip.address.ip:
            raise CNIError(
                Code.INVALID_CONFIG, f"IPAM gave {ip.gateway} as an address and as its gateway"
            )
        found[ip.gateway] = None
    return list(found)


def configure_host(host: "NetNS", ours: "Link", ips: "Sequence[IPConfig]") -> None:
    """Give the host's end `ours` the gateways, and the host a route to each address.

    Raises CNIError when another interface has that route.
    """
    given = gateways(ips)
    messages = [address_message(ours.index, ip_interface(gateway), dad=False) for gateway in given]
    messages += [
        route_message(ours.index, _to(ip.address.ip, RT_SCOPE_HOST), exclusive=True) for ip in ips
    ]
    try:
        host.netlink.channel.exchange(messages)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        raise _taken(host, ours, ips, error) from None
    if any(gateway.version == 6 for gateway in given):
        events = partial(host.channel, NETLINK_ROUTE, RTMGRP_IPV6_IFADDR)
        interface.wait_until(lambda: _is_settled(host, ours), events, _SECONDS)


def routes_on_way(index: int, ips: "Sequence[IPConfig]") -> "list[Message]":
    """Return what adds the container's routes to the gateways, and by them to the subnets."""
    first: dict[Subnet, Message] = {}  # of two addresses with one gateway, or of one subnet
    for ip in ips:
        if ip.gateway is None:
            continue  # gateways() has refused it
        direct, subnet = _to(ip.gateway, RT_SCOPE_LINK), ip.address.network
        first.setdefault(direct.dst, route_message(index, direct, source=ip.address.ip))
        if subnet.num_addresses > 1:
            route = Route(subnet, ip.gateway)
            first.setdefault(subnet, route_message(index, route, source=ip.address.ip))
    return list(first.values())


def check_host(host: "NetNS", ours: "Link", ips: "Sequence[IPConfig]") -> None:
    """Raise CNIError when a gateway, a route to an address or forwarding is gone."""
    if not ours.up:
        raise interface.drift(f"interface '{ours.name}' is down")
    present = {cidr for cidr, _ in host.netlink.addresses(ours.index)}
    for gateway in gateways(ips):
        if ip_interface(gateway) not in present:
            raise interface.drift(f"gateway {gateway} is missing on '{ours.name}'")
        if host.sysctl(interface.FORWARDING[gateway.version]) == "0":
            raise interface.drift(f"the host no longer forwards IPv{gateway.version}")
    for ip in ips:
        if host.netlink.way_to(ip.address.ip) != (RTN_UNICAST, ours.index):
            raise interface.drift(
                f"the host's way to {ip.address.ip} does not lead over '{ours.name}'"
            )


def check_container(container: "NetNS", link: "Link", ips: "Sequence[IPConfig]") -> None:
    """Raise CNIError when the container has lost its way to a gateway."""
    for gateway in gateways(ips):
        if container.netlink.way_to(gateway) != (RTN_UNICAST, link.index):
            raise interface.drift(f"the way to gateway {gateway} does not lead over '{link.name}'")


def _to(address: "Address", scope: int) -> Route:
    """Return the route to one address; IPv6 knows no scopes."""
    return Route(ip_network(address), scope=scope if address.version == 4 else None)


def _taken(host: "NetNS", ours: "Link", ips: "Sequence[IPConfig]", error: NetlinkError) -> CNIError:
    """Return the error that names the address to which the host has another way already."""
    for ip in ips:
        kind, index = host.netlink.way_to(ip.address.ip)
        if index not in (0, ours.index) and kind in (RTN_UNICAST, RTN_LOCAL):
            other = host.netlink.link_at(index)
            return CNIError(
                Code.INTERNAL,
                f"the host has a route to {ip.address.ip} already, over"
                f" '{other.name if other else index}'; remove whatever has this address",
            )
    return CNIError(Code.INTERNAL, str(error))


def _is_settled(host: "NetNS", ours: "Link") -> bool:
    return not any(flags & IFA_F_TENTATIVE for _, flags in host.netlink.addresses(ours.index, (6,)))
