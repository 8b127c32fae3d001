"""The routes between host and container: a gateway on the host's end, and host routes both ways.

The container reaches all hosts, its own subnet included, over the gateway. The host's end of every
pair has the same gateway, and the host has a route to each container's address.
"""

from __future__ import annotations

import errno
from functools import partial
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.netns import NETLINK_ROUTE
from cni_common.kernel.route import (
    IFA_F_TENTATIVE,
    RT_SCOPE_HOST,
    RT_SCOPE_LINK,
    RTN_LOCAL,
    RTN_UNICAST,
    address_message,
    route_message,
)
from cni_common.kernel.rtnetlink import RTMGRP_IPV6_IFADDR
from cni_common.node import veth
from cni_common.spec.errors import CNIError, Code, drifted
from cni_common.spec.result import Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cni_common.kernel.link import Link
    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from cni_common.spec.names import Address, Subnet
    from cni_common.spec.result import IPConfig

_TRIES = 3  # attempts at a route that a dead container's interface may have
_SECONDS = 1.0  # limit until the kernel has activated an IPv6 address


def gateways(ips: Sequence[IPConfig]) -> list[Address]:
    """Return the gateways of the addresses, each once. Raises CNIError 7 if one is missing."""
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


def clashes(host: NetNS, ips: Sequence[IPConfig]) -> Iterator[str]:
    """Yield a line for each address that is on a link of the host, so in the subnet of another.

    To be asked for before the host has its own route to the address.
    """
    for ip in ips:
        index = host.netlink.neighbour_over(ip.address.ip)
        other = host.netlink.link_at(index) if index else None
        # A pair of ours may still have its route: the kernel is about to remove it.
        if other is None or (other.kind == "veth" and other.name.startswith("veth")):
            continue
        yield (
            f"'{other.name}' has the subnet of {ip.address} already: hosts on its link and the"
            f" container do not reach each other, and this host has {ip.gateway} itself from now"
            " on; give this network another subnet"
        )


def configure_host(
    host: NetNS, ours: Link, ips: Sequence[IPConfig], remove_if_gone: Callable[[Link], str]
) -> None:
    """Add the gateways to the host's end `ours`, and a route to each address to the host.

    Raises CNIError if another interface has that route, and `remove_if_gone` has not removed it but
    describes its owner.
    """
    given = gateways(ips)
    messages = [address_message(ours.index, ip_interface(gateway), dad=False) for gateway in given]
    try:
        host.netlink.channel.exchange(messages + [_route_message(ours, ip) for ip in ips])
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise veth.refused(error, host, ours.name) from None
        for ip in ips:
            _add_beside_other(host, ours, ip, remove_if_gone)
    if any(gateway.version == 6 for gateway in given):
        events = partial(host.channel, NETLINK_ROUTE, RTMGRP_IPV6_IFADDR)
        veth.wait_until(lambda: _is_usable(host, ours), events, _SECONDS)


def subnet_routes(index: int, ips: Sequence[IPConfig]) -> list[Message]:
    """Return the requests for the container's routes to the gateways, and over them to subnets."""
    first: dict[Subnet, Message] = {}  # of two addresses with one gateway, or of one subnet
    for ip in ips:
        if ip.gateway is None:
            continue  # gateways() has refused a missing one
        direct, subnet = _to(ip.gateway, RT_SCOPE_LINK), ip.address.network
        first.setdefault(direct.dst, route_message(index, direct, source=ip.address.ip))
        if subnet.num_addresses > 1:
            route = Route(subnet, ip.gateway)
            first.setdefault(subnet, route_message(index, route, source=ip.address.ip))
    return list(first.values())


def check_host(host: NetNS, ours: Link, ips: Sequence[IPConfig]) -> Iterator[CNIError]:
    """Yield a finding for each missing gateway or route to an address."""
    if not ours.up:
        yield drifted(f"interface '{ours.name}' is down")
    for gateway, there in found_gateways(host, ours, ips):
        if not there:
            at_once = " nodad" if gateway.version == 6 else ""
            remedy = f"run 'ip address add {gateway} dev {ours.name}{at_once}'"
            yield drifted(f"gateway {gateway} is missing on '{ours.name}'", remedy)
    for address, there in found_routes(host, ours, ips):
        if not there:
            scope = " scope host" if address.version == 4 else ""
            remedy = f"run 'ip route replace {address} dev {ours.name}{scope}'"
            what = f"the host's route to {address} does not use '{ours.name}'"
            yield drifted(what, remedy if ours.up else "")


def found_gateways(
    host: NetNS, ours: Link | None, ips: Sequence[IPConfig]
) -> Iterator[tuple[Address, bool]]:
    """Yield each gateway, and whether the host's end has it."""
    there = {cidr for cidr, _ in host.netlink.addresses(ours.index)} if ours else set()
    for gateway in gateways(ips):
        yield gateway, ip_interface(gateway) in there


def found_routes(
    host: NetNS, ours: Link | None, ips: Sequence[IPConfig]
) -> Iterator[tuple[Address, bool]]:
    """Yield each address, and whether the host's route to it uses the host's end."""
    for ip in ips:
        wanted = (RTN_UNICAST, ours.index) if ours else None
        yield ip.address.ip, host.netlink.route_to(ip.address.ip) == wanted


def check_container(container: NetNS, link: Link, ips: Sequence[IPConfig]) -> Iterator[CNIError]:
    """Yield a finding for each gateway to which no route leads over the container's interface.

    The route is that of a packet of the address: another plugin may have given it a table.
    """
    vrf, missed = _vrf_of(container, link), dict.fromkeys(gateways(ips), False)
    for ip in ips:
        if ip.gateway is not None:
            found = container.netlink.route_to(ip.gateway, source=ip.address.ip, vrf=vrf)
            missed[ip.gateway] |= found != (RTN_UNICAST, link.index)
    for gateway in (one for one, is_missed in missed.items() if is_missed):
        yield drifted(f"the route to gateway {gateway} does not use '{link.name}'")


def _vrf_of(container: NetNS, link: Link) -> int:
    """Return the index of the VRF that the container's interface is in, 0: none."""
    master = container.netlink.link_at(link.master) if link.master else None
    return master.index if master and master.kind == "vrf" else 0


def _to(address: Address, scope: int) -> Route:
    """Return the route to one address; IPv6 has no scopes."""
    return Route(ip_network(address), scope=scope if address.version == 4 else None)


def _route_message(ours: Link, ip: IPConfig) -> Message:
    return route_message(ours.index, _to(ip.address.ip, RT_SCOPE_HOST), exclusive=True)


def _add_beside_other(
    host: NetNS, ours: Link, ip: IPConfig, remove_if_gone: Callable[[Link], str]
) -> None:
    """Add the route to an address, though another interface may have it. Raises CNIError."""
    other, index, owner = None, 0, ""
    for _ in range(_TRIES):
        try:
            host.netlink.channel.exchange([_route_message(ours, ip)])
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
        else:
            return
        type, index = host.netlink.route_to(ip.address.ip)
        if index == ours.index:
            return
        other = host.netlink.link_at(index) if type in (RTN_UNICAST, RTN_LOCAL) else None
        owner = remove_if_gone(other) if other is not None else ""
        if owner:
            break
    over = f"over '{other.name if other else index}'" + (f", of {owner}" if owner else "")
    raise CNIError(
        Code.INTERNAL,
        f"the host has a route to {ip.address.ip} already, {over}; remove the owner of that",
    )


def _is_usable(host: NetNS, ours: Link) -> bool:
    return not any(flags & IFA_F_TENTATIVE for _, flags in host.netlink.addresses(ours.index, (6,)))
