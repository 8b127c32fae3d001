"""ptp: a veth pair between the container and the host, which routes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.node import lifecycle, liveness, masquerade, veth
from cni_common.spec.request import Command
from cni_common.spec.result import Interface, Result
from plugins.ptp import routes
from plugins.ptp.conf import SCHEMA, Conf

if TYPE_CHECKING:
    from cni_common.kernel.link import Link
    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "status"]

_UP_SECONDS = 2.5  # as for a port of a bridge
# A veth that no record knows is one of the reference's, or of a bridge.
KIND = lifecycle.Kind("ptp", lambda _req, _host, end: not end.master)


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Connect the container with the host, and route between them."""
    conf = Conf.of(req)
    host.is_ours(conf.ipam, req.path)  # raises when there is no such plugin, before any act
    container = host.open_netns(req.netns)
    veth.refuse_existing(container, req.ifname)
    record = lifecycle.begin(KIND, req, host, undo)
    end = VethEnd(req.ifname, veth.random_mac(), netns=container.fd)
    ours = veth.create_veth(
        host.netns,
        end,
        undo,
        mtu=conf.mtu,
        intend=lambda own: record.note(veth=own.name, veth_mac=own.mac, mac=end.mac),
    )
    result = _allocate(req, host, conf, undo)
    result.interfaces = [
        Interface(ours.name, ours.mac, ours.mtu),
        Interface(req.ifname, end.mac, ours.mtu, req.netns),
    ]
    veth.enable_forwarding(host.netns, {ip.address.version for ip in result.ips}, host.log)
    routes.configure_host(host.netns, ours, result.ips, lambda other: _remove_if_gone(host, other))
    on_way = routes.routes_on_way(ours.peer, result.ips)
    veth.configure(container, req.ifname, ours.peer, result, on_way=on_way)
    if conf.masquerade:
        _masquerade(req, host, conf, result, record=record, undo=undo)
    veth.await_operational(host.netns, ours.index, _UP_SECONDS)
    return result


def delete(req: Request, host: Host) -> None:
    """Detach: from the record of what ADD made, else from prevResult and what is found."""
    lifecycle.delete(KIND, req, host)


def check(req: Request, host: Host) -> None:
    """Raise CNIError naming what is no longer as ADD made it."""
    conf = Conf.of(req)
    host.delegate(conf.ipam, req, Command.CHECK)
    expected = req.require_prev_result()
    container = host.open_netns(req.netns)
    # Other plugins of the chain may have added addresses of other interfaces.
    expected = replace(expected, ips=veth.ips_of(expected, req.ifname))
    link = veth.check(container, req.ifname, expected)
    routes.check_container(container, link, expected.ips)
    routes.check_host(host.netns, _host_end(req, host, link), expected.ips)
    if conf.masquerade:
        masquerade.check(
            host.netns,
            KIND.owner(req),
            [ip.address for ip in expected.ips],
            backend=conf.masquerade,
        )


def gc(req: Request, host: Host) -> None:
    """Remove what belongs to no valid attachment of this network, then let IPAM do the same."""
    lifecycle.gc(KIND, req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work now: 7 configuration, 50 state, firewall, IPAM."""
    conf = Conf.of(req)
    lifecycle.probe(host, conf.masquerade)
    host.delegate(conf.ipam, req, Command.STATUS)


def _allocate(req: Request, host: Host, conf: Conf, undo: Undo) -> Result:
    """Return what IPAM gives, each address with its gateway and for the container's interface."""
    given = lifecycle.allocate(req, host, conf.ipam, undo, mtu=conf.mtu)
    routes.gateways(given.ips)
    for ip in given.ips:
        ip.interface = 1
    if conf.dns is not None:
        given.dns = conf.dns
    return given


def _masquerade(
    req: Request, host: Host, conf: Conf, result: Result, *, record: Record, undo: Undo
) -> None:
    addresses = [ip.address for ip in result.ips]
    undo.push("masquerading", lambda: lifecycle.unmask(KIND, req, host, record.facts))
    lifecycle.mask(KIND, req, host, addresses, backend=conf.masquerade, record=record)


def _remove_if_gone(host: Host, link: Link) -> str:
    """Delete the host's end of a container that is GONE; otherwise describe whose it is.

    The kernel takes such a pair away by itself, but not at once: an address that was just taken
    over may still have its route there.
    """
    for facts in host.records.survey(KIND.plugin):
        if (facts.get("veth"), facts.get("veth_mac")) == (link.name, link.mac):
            state, reason = liveness.Liveness(host).assess(facts)
            if state is not liveness.State.GONE:
                return liveness.describe(liveness.owner_of(KIND.plugin, facts), state, reason)
            host.log(f"removes '{link.name}' of {facts.get('containerid')}: its namespace is gone")
            veth.delete_veth(host.netns, link.name, link.mac)
            return ""
    return "nobody that this plugin has a record of"


def _host_end(req: Request, host: Host, link: Link) -> Link:
    """Return the other end of the container's interface. Raises CNIError."""
    if link.kind != "veth":
        raise veth.drift(f"'{link.name}' is no veth but '{link.kind}'")
    ours = veth.host_end(host.netns, host.open_netns(req.netns), link)
    if ours is None:
        raise veth.drift(f"the host's end of '{link.name}' is missing")
    return ours
