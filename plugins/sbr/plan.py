"""What an ADD is to change: rules by source address, and the tables that they lead to."""

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
    from cni_common.spec.names import Address
    from cni_common.spec.result import IPConfig
    from plugins.sbr.conf import Conf

FIRST_TABLE = 100  # as in the reference
_DEFAULT = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be made, and what is to go."""

    rules: Sequence[tuple[Address, int]]  # source and table
    routes: Sequence[WholeRoute] = ()  # in these tables
    moved: Sequence[WholeRoute] = ()  # of the main table, which go
    hinted: Sequence[WholeRoute] = ()  # of the main table, which come instead


def of(netlink: Netlink, link: Link, ips: Sequence[IPConfig], conf: Conf) -> Plan:
    """Return the plan for an interface and its addresses. Raises CNIError 7."""
    if conf.table:
        present = all_rules(netlink)
        return Plan(
            [
                (ip.address.ip, conf.table)
                for ip in ips
                if not any(
                    one.is_from(ip.address.ip) and one.table == conf.table for one in present
                )
            ]
        )
    used, rules, routes = used_tables(netlink), [], []
    ours = [one for one in whole_routes(netlink, link.index) if _is_movable(one)]
    for ip in ips:
        table = free_table(used, FIRST_TABLE)
        used.add(table)
        rules.append((ip.address.ip, table))
        routes += [one.in_table(table) for one in _routes_for(ip, ips, ours, conf, link=link)]
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


def _routes_for(
    ip: IPConfig, ips: Sequence[IPConfig], ours: Sequence[WholeRoute], conf: Conf, *, link: Link
) -> list[WholeRoute]:
    """Return the routes for what has the address as its source, those without gateway first."""
    version = ip.address.version
    alike = [one for one in ours if one.told.route.dst.version == version]
    peers = [other for other in ips if other.address.version == version]
    found = [one for one in alike if _is_for(one, ip, peers)]
    chosen = conf.gateways.get(version)
    if chosen:
        _refuse_far(chosen, link, peers, alike)
        found = [one for one in found if one.told.route.dst.prefixlen]
    gateway = chosen or ip.gateway
    default = _DEFAULT[version]
    if (
        gateway
        and not gateway.is_unspecified
        and not any(o.told.route.dst == default for o in found)
    ):
        found.append(WholeRoute(route_message(link.index, Route(default, gateway)).body))
    return sorted(found, key=lambda one: bool(one.gateways))


def _is_for(one: WholeRoute, ip: IPConfig, peers: Sequence[IPConfig]) -> bool:
    """Tell whether a route is for an address: by its subnet, or since it is nobody's else."""
    near = [address for address in (one.source, *one.gateways) if address]
    if not near or any(address in ip.address.network for address in near):
        return True
    return not any(address in peer.address.network for peer in peers for address in near)


def _refuse_far(
    gateway: Address, link: Link, peers: Sequence[IPConfig], routes: Sequence[WholeRoute]
) -> None:
    """Raise CNIError 7 unless the gateway is another host on the link."""
    if any(gateway == peer.address.ip for peer in peers):
        raise CNIError(
            Code.INVALID_CONFIG, f"\"gateways\" has {gateway}, which is an address of '{link.name}'"
        )
    near = [one.told.route.dst for one in routes if not one.gateways]
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
    kept: list[WholeRoute] = [one for one in ours if not one.gateways]
    hinted: list[WholeRoute] = []
    seen = set()
    for ip in ips:
        subnet = ip.address.network
        if subnet in seen or subnet.num_addresses == 1:
            continue
        seen.add(subnet)
        present = [one for one in ours if one.told.route.dst == subnet]
        if any(one.source for one in present):
            kept += present
            continue
        kept = [one for one in kept if one not in present]
        hinted += [one.from_source(ip.address.ip) for one in present] or [
            WholeRoute(
                route_message(
                    link.index, Route(subnet, scope=RT_SCOPE_LINK), source=ip.address.ip
                ).body
            )
        ]
    yield [one for one in ours if one not in kept]
    yield hinted
