"""The gateway addresses on the bridge, or on the host's interface in its VLAN."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.route import RT_TABLE_MAIN, RT_TABLE_UNSPEC
from cni_common.node import veth
from cni_common.spec.errors import CNIError, Code, drifted
from cni_common.spec.result import Interface, Route
from plugins.bridge import vlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.spec.names import Address, Cidr
    from cni_common.spec.result import Result
    from plugins.bridge.conf import Conf


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


def ensure(
    host: NetNS,
    conf: Conf,
    bridge: Link,
    result: Result,
    *,
    user_of: Callable[[Cidr], str],
    log: Callable[[str], object],
) -> None:
    """Add the gateways of `result` to the bridge, and enable forwarding. Never rolled back: shared.

    `user_of` describes the other network that needs an address on the bridge, "" when none does.
    """
    link = bridge
    if conf.vlan:
        link = _ensure_vlan_interface(host, conf)
        result.add_interface(Interface(link.name, link.mac, link.mtu))
    wanted = gateways(result)
    versions = sorted({gateway.version for gateway in wanted})
    present = [cidr for cidr, _ in host.netlink.addresses(link.index, versions)]
    for gateway in wanted:
        if gateway in present:
            continue
        for other in _conflicting(gateway, present, wanted):
            _refuse_to_replace(conf, link, gateway, other, user=user_of(other))
            host.netlink.delete_address(link.index, other)
            present.remove(other)
            log(f"forceAddress: {other} on '{link.name}' makes room for {gateway}")
        _add(host, link.name, gateway)
    veth.enable_forwarding(host, {gateway.version for gateway in wanted}, log)


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


def _refuse_to_replace(conf: Conf, link: Link, gateway: Cidr, other: Cidr, *, user: str) -> None:
    if not conf.force_address:
        raise CNIError(
            Code.INVALID_CONFIG,
            f"'{link.name}' already has an IP address different from {gateway}: {other};"
            f" delete it ('ip addr del {other} dev {link.name}') or set"
            ' "forceAddress": true',
        )
    if user:
        raise CNIError(
            Code.INVALID_CONFIG,
            f"{other} on '{link.name}' is the gateway of {user}; no room is left for {gateway};"
            " give this network another bridge",
        )


def _conflicting(gateway: Cidr, present: Iterable[Cidr], wanted: list[Cidr]) -> list[Cidr]:
    """Return the addresses that conflict with `gateway`.

    IPv4: every address that is no gateway of this network; IPv6: those with an overlapping subnet.
    """
    others = [c for c in present if c.version == gateway.version and c not in wanted]
    if gateway.version == 4:
        return others
    return [c for c in others if c.network.overlaps(gateway.network)]


def _add(host: NetNS, name: str, gateway: Cidr) -> None:
    link = veth.required(host, name)
    # A bridge made without a MAC has the lowest MAC of its ports: the next port could change that
    # MAC, and every container would lose its gateway for a while.
    host.netlink.set_mac(link.index, link.mac)
    try:
        # No duplicate address detection: the gateway would be unusable for a second or two.
        host.netlink.add_address(link.index, gateway)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:  # another ADD was faster
            raise


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
