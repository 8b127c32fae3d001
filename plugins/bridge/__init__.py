"""bridge: a veth pair between the container and a Linux bridge on the host."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.node import interface, masquerade, veth
from cni_common.spec.ipam_config import has_advertised_routes
from cni_common.spec.request import Command
from cni_common.spec.result import Interface, Result
from plugins.bridge import gateway, macfilter, port
from plugins.bridge.conf import SCHEMA, Conf
from plugins.bridge.parts import (
    LIFECYCLE,
    MAC_FILTER,
    VETH,
    GatewayFacts,
    MacFilterFacts,
    PortFacts,
    ensure_gateway,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_common.kernel.link import Link
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching, Lifecycle
    from cni_common.spec.errors import CNIError
    from cni_common.spec.names import Cidr
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]

_UP_SECONDS = 2.5  # what the reference waits for the port
_BRIDGE_SECONDS = 1.0  # until a new bridge passes on what the host sends


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Attach the container to the bridge, and to IP where there is an IPAM plugin."""
    conf = Conf.of(req)
    if conf.ipam:
        host.is_ours(conf.ipam, req.path)  # raises when there is no such plugin, before any act
    container = host.open_netns(req.netns)
    veth.refuse_existing(container, req.ifname)
    _probe(host, conf)
    facts = [interface.IpamFacts(conf.ipam)] if conf.ipam else []
    attaching = LIFECYCLE.begin(req, host, undo, PortFacts(conf.bridge), *facts)
    bridge, seen = port.ensure_bridge(host.netns, conf)
    end = VethEnd(req.ifname, conf.mac or veth.random_mac(), netns=container.fd)
    ours = _plug_in(host, conf, end, bridge=bridge, attaching=attaching)
    result = _interfaces(req, bridge, ours, end)
    if conf.ipam:
        _allocate(req, host, conf, result, attaching=attaching)
        _ensure_gateways(req, host, conf, result, bridge=(bridge, seen), attaching=attaching)
        interface.note_configuration(attaching, req.ifname, ours.mtu, result)
        on_lan = has_advertised_routes(req.config)  # where others may have the same address
        dad = conf.dad or on_lan
        if conf.masquerade:  # before the link is up: no packet leaves without
            addresses = [ip.address for ip in result.ips]
            interface.add_masquerade(attaching, req, host, addresses, backend=conf.masquerade)
        veth.configure(container, req.ifname, ours.peer, result, dad=dad, advertised=on_lan)
    elif not conf.container_down:
        container.netlink.configure(ours.peer, (), (), dad=conf.dad)
    bridge = _await_working(host, conf, ours, bridge)
    mtu = port.fit_mtu(host.netns, bridge, conf)
    result.interfaces[0].mac, result.interfaces[0].mtu = bridge.mac, mtu
    if conf.dns is not None:
        result.dns = conf.dns
    return result


def delete(req: Request, host: Host) -> None:
    """Detach: from the record of what ADD made, else from prevResult and what is found."""
    LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each difference from the result of ADD."""
    conf = Conf.of(req)
    if conf.ipam:
        yield from interface.check_ipam(req, host, conf.ipam)
    expected = req.require_prev_result()
    # Other plugins of the chain may have added addresses of other interfaces.
    expected = replace(expected, ips=veth.ips_of(expected, req.ifname))
    container = host.open_netns(req.netns)
    link = container.netlink.link(req.ifname)
    ours = veth.host_end(host.netns, container, link) if link else None
    yield from veth.check_pair(container, req.ifname, link, ours)
    if link and not conf.container_down:
        yield from veth.check(container, link, expected)
    yield from port.check(host.netns, conf, ours, expected)
    if conf.mac_filter and link and ours:
        yield from macfilter.check(host.netns, ours.name, link.mac)
    if conf.ipam and conf.is_gateway:
        yield from gateway.check(host.netns, conf, expected)
    if conf.ipam and conf.masquerade:
        yield from masquerade.check(
            host.netns,
            masquerade.Owner(LIFECYCLE.plugin, req.network, req.attachment),
            [ip.address for ip in expected.ips],
            backend=conf.masquerade,
        )


def gc(req: Request, host: Host) -> None:
    """Remove what belongs to no valid attachment of this network, then let IPAM do the same."""
    LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work now.

    7: something else has the bridge's name; 50: state, firewall, IPAM.
    """
    conf = Conf.of(replace(req, environ={}))  # CNI_ARGS belong to an attachment
    port.refuse_other_type(host.netns.netlink.link(conf.bridge), conf)
    host.records.probe()
    _probe(host, conf)
    if conf.ipam:
        host.delegate(conf.ipam, req, Command.STATUS)


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


def _probe(host: Host, conf: Conf) -> None:
    """Raise CNIError 50 when what `conf` needs cannot be used."""
    if conf.masquerade:
        masquerade.probe(host.netns, conf.masquerade)
    if conf.mac_filter:
        macfilter.probe(host.netns)


def _plug_in(host: Host, conf: Conf, end: VethEnd, *, bridge: Link, attaching: Attaching) -> Link:
    """Make the veth pair; return the host's end, which is the port."""
    ours = VETH.create(attaching, host, end, mtu=conf.mtu, master=bridge.index)
    port.configure(host.netns, ours, conf)
    if conf.mac_filter:
        attaching.note(MacFilterFacts(ours.name, end.mac))
        attaching.take_back(MAC_FILTER)
        macfilter.add(host.netns, ours.name, end.mac)
    return ours


def _await_working(host: Host, conf: Conf, ours: Link, bridge: Link) -> Link:
    """Return the bridge as it is once port and bridge pass packets on. Raises CNIError."""
    # As a rule both do by now, and one look tells.
    links = host.netns.netlink.links_at((ours.index, bridge.index))
    if all(link and link.operstate == "UP" for link in links) and links[1]:
        return links[1]
    if not conf.container_down:
        veth.await_operational(host.netns, ours.index, _UP_SECONDS)
    # Not by force: a bridge with STP takes half a minute for its first port. And one that was
    # made without a MAC takes on that of its lowest port, likewise the MTU.
    seconds = 0 if conf.container_down else _BRIDGE_SECONDS
    return veth.await_link(host.netns, bridge.index, seconds)


def _interfaces(req: Request, bridge: Link, ours: Link, end: VethEnd) -> Result:
    result = Result()
    result.add_interface(Interface(bridge.name, bridge.mac, bridge.mtu))
    result.add_interface(Interface(ours.name, ours.mac, ours.mtu))
    result.add_interface(Interface(req.ifname, end.mac, ours.mtu, req.netns))
    return result


def _allocate(
    req: Request, host: Host, conf: Conf, result: Result, *, attaching: Attaching
) -> None:
    """Complete `result` by what IPAM gives."""
    given = interface.allocate(req, host, conf.ipam, attaching, mtu=conf.mtu)
    result.ips, result.routes, result.dns = given.ips, given.routes, given.dns
    for ip in result.ips:
        ip.interface = len(result.interfaces) - 1


def _ensure_gateways(
    req: Request,
    host: Host,
    conf: Conf,
    result: Result,
    *,
    bridge: tuple[Link, list[Cidr]],
    attaching: Attaching,
) -> None:
    """Make the host the gateway of the addresses in `result`, if it is configured to be.

    `bridge`: as `port.ensure_bridge` returns it.
    """
    link, seen = bridge
    if not conf.is_gateway:
        if conf.masquerade:
            _say(req, host, gateway.unserved(host.netns, link, result))
        return
    gateway.complete(conf, result)
    gateways = [str(cidr) for cidr in gateway.gateways(result)]
    attaching.note(GatewayFacts(conf.gateway_interface, gateways))
    link = ensure_gateway(req, host, conf, link, result, seen=seen)
    _say(req, host, gateway.detours(host.netns, link, result))


def _say(req: Request, host: Host, doubts: Iterable[str]) -> None:
    """Log conditions that keep packets from flowing although the ADD succeeds."""
    for line in doubts:
        host.log(f"network {req.network}: {line}")
