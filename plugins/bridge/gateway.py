"""The gateway addresses on the bridge, or on the host's interface in its VLAN."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.route import (
    RT_SCOPE_LINK,
    RT_TABLE_MAIN,
    RT_TABLE_UNSPEC,
    RTN_LOCAL,
    route_message,
)
from cni_common.node import veth
from cni_common.spec.errors import CNIError, Code, drifted, listed
from cni_common.spec.result import Interface, Route
from plugins.bridge import port, vlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.spec.names import Address, Cidr, Subnet
    from cni_common.spec.result import Result
    from plugins.bridge.conf import Conf


@dataclass(frozen=True, slots=True)
class Claims:
    """Signs that an address on a bridge is needed."""

    user: str  # the other network whose gateway it is, "" for none
    ports: Sequence[str]  # of the bridge that no attachment has: an uplink, perhaps


def complete(conf: Conf, result: Result) -> None:
    """Fill in missing gateways, and with isDefaultGateway the default routes.

    Raises CNIError 7 if a subnet has no address for its gateway.
    """
    done = {route.dst.version for route in result.routes if _is_default(route)}
    for ip in result.ips:
        if ip.gateway is None:
            ip.gateway = _first_address(ip.address)
        version = ip.address.version
        if conf.is_default_gateway and version not in done:
            done.add(version)
            any_address = type(ip.address)("0.0.0.0/0" if version == 4 else "::/0").network
            result.routes.append(Route(any_address, ip.gateway))


def _first_address(address: Cidr) -> Address:
    """Return the default gateway of a subnet: its first address. Raises CNIError 7."""
    try:
        return address.network.network_address + 1
    except ValueError:
        raise CNIError(
            Code.INVALID_CONFIG,
            f"there is no address after {address} to be its gateway; have IPAM name one",
        ) from None


def _is_default(route: Route) -> bool:
    """Tell whether `route` is a default route that ADD must not add again."""
    in_main = route.table in (None, RT_TABLE_UNSPEC, RT_TABLE_MAIN)
    return not route.dst.prefixlen and (in_main or route.gw is not None)


def ensure(  # noqa: PLR0913 - what an ADD knows by then
    host: NetNS,
    conf: Conf,
    bridge: Link,
    result: Result,
    *,
    seen: Sequence[Cidr],
    claims: Callable[[Link, Cidr], Claims],
    log: Callable[[str], object],
) -> Link:
    """Add the gateways of `result` to the bridge, and enable forwarding. Never rolled back: shared.

    If `seen`, the addresses that the bridge had a moment ago, has all of them, there is no second
    look. `claims` tells of the others that need an address on the bridge. Returns the interface
    that has the gateways.
    """
    link = bridge
    if conf.vlan:
        link = _ensure_vlan_interface(host, conf)
        result.add_interface(Interface(link.name, link.mac, link.mtu))
    wanted = gateways(result)
    if conf.vlan or not all(gateway in seen for gateway in wanted):
        _give(host, conf, link, wanted, claims=claims, log=log)
    _add_subnet_routes(host, link, result)
    veth.enable_forwarding(host, {gateway.version for gateway in wanted}, log)
    return link


def _give(
    host: NetNS,
    conf: Conf,
    link: Link,
    wanted: list[Cidr],
    *,
    claims: Callable[[Link, Cidr], Claims],
    log: Callable[[str], object],
) -> None:
    """Add those gateways that `link` does not have; arguments as those of `ensure`."""
    versions = sorted({gateway.version for gateway in wanted})
    present = [cidr for cidr, _ in host.netlink.addresses(link.index, versions)]
    for gateway in wanted:
        if gateway in present:
            continue
        for other in _conflicting(gateway, present, wanted):
            claimed = claims(link, other)
            if claimed.user or not conf.force_address:
                raise _conflict(conf, link, gateway, other, claimed)
            host.netlink.delete_address(link.index, other)
            present.remove(other)
            log(f"forceAddress: {other} on '{link.name}' makes room for {gateway}")
        _add(host, link, gateway)


def _add_subnet_routes(host: NetNS, link: Link, result: Result) -> None:
    """Add routes to subnets that their gateways are not in, as fe80::1: the kernel adds none.

    A route to a single address would be the container's alone, and stay when that goes.
    """
    for ip in result.ips:
        subnet = ip.address.network
        if ip.gateway is None or ip.gateway in subnet or subnet.num_addresses == 1:
            continue
        route = Route(subnet, scope=RT_SCOPE_LINK if subnet.version == 4 else None)
        try:
            host.netlink.channel.exchange([route_message(link.index, route, exclusive=True)])
        except NetlinkError as error:
            if error.errno != errno.EEXIST:  # another container's ADD has added it
                raise veth.refused(error, host, link.name) from None


def lost_routes(host: NetNS, link: Link, result: Result) -> list[Subnet]:
    """Return the subnets of `result` to which no route leads over the gateway's `link`.

    The subnet of a single address needs none.
    """
    subnets = {
        ip.address.network
        for ip in result.ips
        if ip.gateway is not None
        and ip.address.network.num_addresses > 1
        and host.netlink.route_to(ip.address.ip)[1] != link.index
    }
    if not subnets:
        return []
    # Another interface may have a narrower route, as ADD has said.
    present = {route.dst for route in host.netlink.routes(link.index)}
    return sorted(subnets - present, key=str)


def put_back_routes(host: NetNS, link: Link, result: Result) -> None:
    """Add the routes that `lost_routes` finds; they go with the gateways. Raises NetlinkError."""
    for subnet in lost_routes(host, link, result):
        gateway = next((one.ip for one in gateways(result) if one.network == subnet), None)
        route = Route(subnet, scope=RT_SCOPE_LINK if subnet.version == 4 else None)
        source = gateway if subnet.version == 4 else None
        message = route_message(link.index, route, source=source, exclusive=True)
        host.netlink.channel.exchange([message])


def detours(host: NetNS, link: Link, result: Result) -> Iterator[str]:
    """Yield a line for each address to which the host does not send over the gateway's `link`."""
    for ip in result.ips:
        type, index = host.netlink.route_to(ip.address.ip)
        if index == link.index:
            continue
        other = host.netlink.link_at(index) if index else None
        leads = f"over '{other.name}'" if other else "nowhere"
        if type == RTN_LOCAL:
            leads = "to itself"
        what = f"the host sends packets for {ip.address.ip} {leads}, not over '{link.name}'"
        if ip.address.network.num_addresses == 1:
            yield f"{what}; give the address the prefix length of its network, or use ptp"
        else:
            yield (
                f"{what}: another interface or route has {ip.address.network}; give this network"
                " another subnet"
            )


def unserved(host: NetNS, bridge: Link, result: Result) -> Iterator[str]:
    """Yield a line for each gateway of `result` that ipMasq needs and the bridge does not have."""
    present = {cidr.ip for cidr, _ in host.netlink.addresses(bridge.index)}
    gateways = {ip.gateway for ip in result.ips if ip.gateway is not None}
    for gateway in sorted(gateways - present, key=str):
        yield (
            f"'{bridge.name}' does not have gateway {gateway}: what the container sends to other"
            ' networks does not come to this host, and "ipMasq" does nothing; set "isGateway", or'
            ' leave "ipMasq" out if the gateway is another host'
        )


def check(host: NetNS, conf: Conf, expected: Result) -> Iterator[CNIError]:
    """Yield a finding for each missing gateway address, and if forwarding is off."""
    name, wanted = conf.gateway_interface, gateways(expected)
    link = host.netlink.link(name)
    present = {cidr for cidr, _ in host.netlink.addresses(link.index)} if link else set()
    if link is None and conf.vlan:  # without a VLAN it is the bridge, which is looked at elsewhere
        yield drifted(f"gateway interface '{name}' is missing")
    for gateway in wanted:
        if link and gateway not in present:
            at_once = " nodad" if gateway.version == 6 else ""
            remedy = f"run 'ip address add {gateway} dev {name}{at_once}'"
            yield drifted(f"gateway {gateway} is missing on '{name}'", remedy)
    yield from veth.check_forwarding(host, {gateway.version for gateway in wanted})


def gateways(result: Result) -> list[Cidr]:
    """Return the bridge's addresses: each gateway, with the prefix length of the address."""
    found: dict[Cidr, None] = {}
    for ip in result.ips:
        if ip.gateway is not None and ip.gateway.version == ip.address.version:
            found[type(ip.address)(f"{ip.gateway}/{ip.address.network.prefixlen}")] = None
    return list(found)


def _conflict(  # noqa: PLR0917 - two addresses of one interface
    conf: Conf, link: Link, gateway: Cidr, other: Cidr, claims: Claims
) -> CNIError:
    """Return the refusal to replace `other`; the way out depends on the owner of that address."""
    another = "give this network another bridge"
    if claims.user:
        what = f", the gateway of {claims.user}; {another}"
    elif claims.ports:
        # Probably an address of the host in its LAN, without which the host is cut off.
        keys = '"isGateway"' + (' and "isDefaultGateway"' if conf.is_default_gateway else "")
        what = (
            f"; it has ports that are no container's: {listed(claims.ports)}. If {gateway.ip} is a"
            f" router behind them, leave out {keys}; if not, {another}"
        )
    else:
        remedy = f"'ip addr del {other} dev {link.name}'"
        what = f'; delete it ({remedy}) or set "forceAddress": true'
    return CNIError(
        Code.INVALID_CONFIG,
        f"'{link.name}' already has an IP address different from {gateway}: {other}{what}",
    )


def _conflicting(gateway: Cidr, present: Iterable[Cidr], wanted: list[Cidr]) -> list[Cidr]:
    """Return the addresses that conflict with `gateway`.

    IPv4: every address that is no gateway of this network; IPv6: those with an overlapping subnet.
    """
    others = [c for c in present if c.version == gateway.version and c not in wanted]
    if gateway.version == 4:
        return others
    return [c for c in others if c.network.overlaps(gateway.network)]


def _add(host: NetNS, link: Link, gateway: Cidr) -> None:
    port.fix_mac(host, link)  # that from before our port was in the bridge
    try:
        # No duplicate address detection: the gateway would be unusable for a second or two.
        host.netlink.add_address(link.index, gateway)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:  # another ADD was faster
            raise veth.refused(error, host, link.name) from None


def _ensure_vlan_interface(host: NetNS, conf: Conf) -> Link:
    """Return the host's interface in the VLAN, a veth into the bridge; create it if missing.

    Raises CNIError 7 for another interface of that name.
    """
    bridge = veth.required(host, conf.bridge)
    name = conf.gateway_interface
    if host.netlink.link(name) is None:
        try:
            # Shared as soon as it exists, so never rolled back: the next ADD completes it.
            veth.create_veth(
                host,
                VethEnd(name, veth.random_mac()),
                mtu=bridge.mtu,
                master=bridge.index,
            )
        except NetlinkError as error:
            if error.errno != errno.EEXIST:  # another ADD was faster
                raise
    link = veth.required(host, name)
    peer = host.netlink.link_at(link.peer) if link.peer_nsid is None else None
    if link.kind != "veth" or peer is None or peer.master != bridge.index:
        raise CNIError(
            Code.INVALID_CONFIG,
            f"'{name}' already exists but does not lead into bridge '{conf.bridge}'; rename it",
        )
    own = vlan.Vlan(conf.vlan, pvid=True, untagged=True)
    if own not in vlan.vlans_of(host.netlink, peer.index):
        keep = conf.preserve_default_vlan
        vlan.replace_vlans(host.netlink, peer.index, [own], keep=keep)
    if not link.up:
        veth.stay_silent(host, name)
        host.netlink.set_up(link.index)
    return link
