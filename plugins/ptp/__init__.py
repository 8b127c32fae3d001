"""ptp: a veth pair between the container and the host, which routes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.node import interface, masquerade, veth
from cni_common.spec.request import Command
from cni_common.spec.result import Interface, Result
from plugins.ptp import routes
from plugins.ptp.conf import SCHEMA, Conf
from plugins.ptp.parts import LIFECYCLE, VETH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching, Lifecycle
    from cni_common.spec.errors import CNIError
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]

_UP_SECONDS = 2.5  # as for a port of a bridge


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Connect the container with the host, and route between them."""
    conf = Conf.of(req)
    host.is_ours(conf.ipam, req.path)  # raises when there is no such plugin, before any act
    container = host.open_netns(req.netns)
    veth.refuse_existing(container, req.ifname)
    if conf.masquerade:
        masquerade.probe(host.netns, conf.masquerade)
    attaching = LIFECYCLE.begin(req, host, undo, interface.IpamFacts(conf.ipam))
    end = VethEnd(req.ifname, veth.random_mac(), netns=container.fd)
    ours = VETH.create(attaching, host, end, mtu=conf.mtu)
    result = _allocate(req, host, conf, attaching)
    result.interfaces = [
        Interface(ours.name, ours.mac, ours.mtu),
        Interface(req.ifname, end.mac, ours.mtu, req.netns),
    ]
    veth.enable_forwarding(host.netns, {ip.address.version for ip in result.ips}, host.log)
    for line in routes.clashes(host.netns, result.ips):
        host.log(f"network {req.network}: {line}")
    routes.configure_host(host.netns, ours, result.ips, lambda other: _remove_if_gone(host, other))
    interface.note_configuration(attaching, req.ifname, ours.mtu, result)
    if conf.masquerade:  # before the link is up: no packet leaves without
        addresses = [ip.address for ip in result.ips]
        interface.add_masquerade(attaching, req, host, addresses, backend=conf.masquerade)
    subnet_routes = routes.subnet_routes(ours.peer, result.ips)
    veth.configure(container, req.ifname, ours.peer, result, subnet_routes=subnet_routes)
    veth.await_operational(host.netns, ours.index, _UP_SECONDS)
    return result


def delete(req: Request, host: Host) -> None:
    """Detach: from the record of what ADD made, else from prevResult and what is found."""
    LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each difference from the result of ADD."""
    conf = Conf.of(req)
    yield from interface.check_ipam(req, host, conf.ipam)
    expected = req.require_prev_result()
    # Other plugins of the chain may have added addresses of other interfaces.
    expected = replace(expected, ips=veth.ips_of(expected, req.ifname))
    container = host.open_netns(req.netns)
    link = container.netlink.link(req.ifname)
    ours = veth.host_end(host.netns, container, link) if link else None
    yield from veth.check_pair(container, req.ifname, link, ours)
    if link:
        yield from veth.check(container, link, expected)
        yield from routes.check_container(container, link, expected.ips)
    if ours:
        yield from routes.check_host(host.netns, ours, expected.ips)
    yield from veth.check_forwarding(host.netns, {ip.address.version for ip in expected.ips})
    if conf.masquerade:
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
    """Raise CNIError when an ADD could not work now: 7 configuration, 50 state, firewall, IPAM."""
    conf = Conf.of(req)
    host.records.probe()
    if conf.masquerade:
        masquerade.probe(host.netns, conf.masquerade)
    host.delegate(conf.ipam, req, Command.STATUS)


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


def _allocate(req: Request, host: Host, conf: Conf, attaching: Attaching) -> Result:
    """Return what IPAM gives, each address with its gateway and for the container's interface."""
    given = interface.allocate(req, host, conf.ipam, attaching, mtu=conf.mtu)
    routes.gateways(given.ips)
    for ip in given.ips:
        ip.interface = 1
    if conf.dns is not None:
        given.dns = conf.dns
    return given


def _remove_if_gone(host: Host, link: Link) -> str:
    """Delete the host's end of a container that is GONE; otherwise describe its owner.

    The kernel takes such a pair away by itself, but not at once: an address that was just taken
    over may still have its route there.
    """
    from cni_common.node import liveness

    record = interface.record_of(host, LIFECYCLE.plugin, link)
    if record is None:
        return "no owner that this plugin has a record of"
    state, reason = liveness.Liveness(host).assess(record.facts)
    if state is not liveness.State.GONE:
        return liveness.describe(str(masquerade.owner_of(record)), state, reason)
    host.log(f"removes '{link.name}' of {record.attachment.containerid}: its namespace is gone")
    host.delete_link(host.netns, link.name, link.mac)
    return ""
