"""The changes of an ADD: rules by source address, and the tables that they lead to."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

from cni_common.kernel.policy_routing import (
    WholeRoute,
    all_rules,
    free_table,
    used_tables,
    whole_routes,
)
from cni_common.kernel.route import RT_SCOPE_LINK, RT_TABLE_MAIN, RTPROT_RA, route_message
from cni_common.spec.errors import CNIError, Code, listed
from cni_common.spec.result import Route

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_common.kernel.link import Link
    from cni_common.kernel.rtnetlink import Netlink
    from cni_common.spec.names import Address, Cidr, Subnet
    from cni_common.spec.result import IPConfig
    from plugins.sbr.conf import Conf

FIRST_TABLE = 100  # as in the reference
_DEFAULT = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


@dataclass(frozen=True, slots=True)
class Plan:
    """The rules and routes that an ADD makes, and the routes that it takes away."""

    rules: Sequence[tuple[Address, int]]  # source and table
    routes: Sequence[WholeRoute] = ()  # in these tables
    moved: Sequence[WholeRoute] = ()  # of the main table, which go
    hinted: Sequence[WholeRoute] = ()  # of the main table, which come instead


def of(netlink: Netlink, link: Link, ips: Sequence[IPConfig], conf: Conf) -> Plan:
    """Return the plan for an interface and its addresses. Raises CNIError 7."""
    if conf.table:
        present = {rule.source for rule in all_rules(netlink) if rule.table == conf.table}
        wanted = [ip.address.ip for ip in ips]
        return Plan([(address, conf.table) for address in wanted if address not in present])
    ours = [one for one in whole_routes(netlink, link.index) if _is_movable(one)]
    peers = {version: [ip for ip in ips if ip.address.version == version] for version in _DEFAULT}
    found = {
        version: _by_address([one for one in ours if one.told.route.dst.version == version], alike)
        for version, alike in peers.items()
    }
    for version, gateway in conf.gateways.items():
        _refuse_far(gateway, link, peers[version], ours)
    used, table, rules, routes = used_tables(netlink), FIRST_TABLE - 1, [], []
    for ip in ips:
        table = free_table(used, table + 1)
        rules.append((ip.address.ip, table))
        own = found[ip.address.version].get(ip.address, [])
        routes += [one.in_table(table) for one in _with_default(ip, own, conf, link)]
    if not conf.source_hints:
        return Plan(rules, routes, ours)
    return Plan(rules, routes, *_with_hints(link, ips, ours))


def _is_movable(one: WholeRoute) -> bool:
    """Tell whether a route is one of the main table that was made for the addresses.

    The kernel's own to the link's addresses serves every table; a router's would come back.
    """
    told = one.told
    own = told.route.dst.version == 6 and told.route.dst.is_link_local
    return told.route.table == RT_TABLE_MAIN and told.protocol != RTPROT_RA and not own


def _by_address(
    routes: Sequence[WholeRoute], ips: Sequence[IPConfig]
) -> dict[Cidr, list[WholeRoute]]:
    """Return for each address the routes for it.

    A route is for an address if its source or gateway is in the address's subnet, or if it leads to
    that subnet; a route that is for none is for all.
    """
    by_subnet: dict[Subnet, list[Cidr]] = {}
    for ip in ips:
        by_subnet.setdefault(ip.address.network, []).append(ip.address)
    lengths = {subnet.prefixlen for subnet in by_subnet}
    found: dict[Cidr, list[WholeRoute]] = {ip.address: [] for ip in ips}
    for one in routes:
        near = [address for address in (one.source, *one.gateways) if address]
        subnets = {ip_network((at, bits), strict=False) for at in near for bits in lengths}
        if not near:
            subnets = {one.told.route.dst}
        owners = [address for subnet in subnets for address in by_subnet.get(subnet, ())]
        for address in dict.fromkeys(owners) if owners else found:
            found[address].append(one)
    return found


def _with_default(
    ip: IPConfig, own: Sequence[WholeRoute], conf: Conf, link: Link
) -> list[WholeRoute]:
    """Return the routes of an address with a default route, those without gateway first."""
    version = ip.address.version
    default, chosen = _DEFAULT[version], conf.gateways.get(version)
    found = [one for one in own if not chosen or one.told.route.dst != default]
    gateway = chosen or ip.gateway
    has_default = any(one.told.route.dst == default for one in found)
    if gateway and not gateway.is_unspecified and not has_default:
        found.append(WholeRoute(route_message(link.index, Route(default, gateway)).body))
    return sorted(found, key=lambda one: bool(one.gateways))


def _refuse_far(
    gateway: Address, link: Link, peers: Sequence[IPConfig], routes: Sequence[WholeRoute]
) -> None:
    """Raise CNIError 7 unless the gateway is another host on the link."""
    if any(gateway == peer.address.ip for peer in peers):
        raise CNIError(
            Code.INVALID_CONFIG, f"\"gateways\" has {gateway}, which is an address of '{link.name}'"
        )
    near = [one.told.route.dst for one in routes if not one.gateways]
    near = [dst for dst in near if dst.version == gateway.version]
    own = gateway.version == 6 and gateway.is_link_local
    if not own and not any(gateway in one for one in near):
        raise CNIError(
            Code.INVALID_CONFIG,
            f"\"gateways\" has {gateway}, which '{link.name}' cannot reach: it is in none of the"
            f" networks on the link, {listed(near) or '(none)'}; correct it",
        )


def _with_hints(
    link: Link, ips: Sequence[IPConfig], ours: Sequence[WholeRoute]
) -> Iterator[list[WholeRoute]]:
    """Yield the routes that leave the main table, and those that come instead.

    Routes without a gateway stay, and the one to the subnet of an address names that as source.
    """
    to_subnet: dict[Subnet, list[WholeRoute]] = {}
    for one in ours:
        to_subnet.setdefault(one.told.route.dst, []).append(one)
    kept = {one.body for one in ours if not one.gateways}
    hinted: list[WholeRoute] = []
    for subnet, ip in {ip.address.network: ip for ip in reversed(ips)}.items():
        present = to_subnet.get(subnet, [])
        if any(one.source for one in present):
            kept |= {one.body for one in present}
        elif subnet.num_addresses > 1:
            kept -= {one.body for one in present}
            hinted += [one.from_source(ip.address.ip) for one in present] or [
                _subnet_route(link, subnet, ip.address.ip)
            ]
    yield [one for one in ours if one.body not in kept]
    yield hinted


def _subnet_route(link: Link, subnet: Subnet, source: Address) -> WholeRoute:
    route = Route(subnet, scope=RT_SCOPE_LINK)
    return WholeRoute(route_message(link.index, route, source=source).body)
