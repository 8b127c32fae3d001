"""ptp: a veth pair between the container and the host, which routes."""

from dataclasses import replace

from cni_common import attachment, collect, interface, masquerade
from cni_common.link import VethEnd
from cni_common.netns import reachable_namespaces
from cni_common.request import Command
from cni_common.types import Interface, Result
from plugins.ptp import way
from plugins.ptp.conf import SCHEMA, Conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_common.host import Host
    from cni_common.link import Link
    from cni_common.record import Record
    from cni_common.request import Request
    from cni_common.steps import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "status"]

_UP_SECONDS = 2.5  # as for a port of a bridge
# A veth that no record knows is one of the reference's, or of a bridge.
KIND = attachment.Kind("ptp", lambda _req, _host, end: not end.master)


def add(req: "Request", host: "Host", undo: "Undo") -> Result:
    """Connect the container with the host, and route between them."""
    conf = Conf.of(req)
    host.is_ours(conf.ipam, req.path)  # raises when there is no such plugin, before any act
    container = host.open_netns(req.netns)
    interface.refuse_existing(container, req.ifname)
    record = attachment.begin(KIND, req, host, undo)
    end = VethEnd(req.ifname, interface.random_mac(), netns=container.fd)
    ours = interface.create_veth(
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
    interface.enable_forwarding(host.netns, {ip.address.version for ip in result.ips}, host.log)
    way.configure_host(host.netns, ours, result.ips, lambda other: _evict_dead(host, other))
    on_way = way.routes_on_way(ours.peer, result.ips)
    interface.configure(container, req.ifname, ours.peer, result, on_way=on_way)
    if conf.masquerade:
        _masquerade(req, host, conf, result, record=record, undo=undo)
    interface.await_operational(host.netns, ours.index, _UP_SECONDS)
    return result


def delete(req: "Request", host: "Host") -> None:
    """Detach: from the record of what ADD made, else from prevResult and what is found."""
    attachment.delete(KIND, req, host)


def check(req: "Request", host: "Host") -> None:
    """Raise CNIError naming what is no longer as ADD made it."""
    conf = Conf.of(req)
    host.delegate(conf.ipam, req, Command.CHECK)
    expected = req.require_prev_result()
    container = host.open_netns(req.netns)
    # Other plugins of the chain may have added addresses of other interfaces.
    expected = replace(expected, ips=interface.ips_of(expected, req.ifname))
    link = interface.check(container, req.ifname, expected)
    way.check_container(container, link, expected.ips)
    way.check_host(host.netns, _host_end(req, host, link), expected.ips)
    if conf.masquerade:
        masquerade.check(
            host.netns,
            KIND.owner(req),
            [ip.address for ip in expected.ips],
            backend=conf.masquerade,
        )


def gc(req: "Request", host: "Host") -> None:
    """Remove what belongs to no valid attachment of this network, then let IPAM do the same."""
    attachment.gc(KIND, req, host)


def status(req: "Request", host: "Host") -> None:
    """Raise CNIError when an ADD could not work now: 7 configuration, 50 state, firewall, IPAM."""
    conf = Conf.of(req)
    attachment.probe(host, conf.masquerade)
    host.delegate(conf.ipam, req, Command.STATUS)


def _allocate(req: "Request", host: "Host", conf: Conf, undo: "Undo") -> Result:
    """Return what IPAM gives, each address with its gateway and for the container's interface."""
    given = attachment.allocate(req, host, conf.ipam, undo, mtu=conf.mtu)
    way.gateways(given.ips)
    for ip in given.ips:
        ip.interface = 1
    if conf.dns is not None:
        given.dns = conf.dns
    return given


def _masquerade(
    req: "Request", host: "Host", conf: Conf, result: Result, *, record: "Record", undo: "Undo"
) -> None:
    addresses = [ip.address for ip in result.ips]
    undo.push("masquerading", lambda: attachment.unmask(KIND, req, host, record.facts))
    attachment.mask(KIND, req, host, addresses, backend=conf.masquerade, record=record)


def _evict_dead(host: "Host", link: "Link") -> bool:
    """Delete the host's end of a container whose namespace is gone; False when it is not.

    The kernel takes such a pair away by itself, but not at once: an address that was just taken
    over may still have its route there.
    """
    for facts in host.records.survey(KIND.plugin):
        if (facts.get("veth"), facts.get("veth_mac")) == (link.name, link.mac):
            if collect.lives(facts, reachable_namespaces) is not False:
                return False
            host.log(f"removes '{link.name}' of {facts.get('containerid')}: its namespace is gone")
            interface.delete_veth(host.netns, link.name, link.mac)
            return True
    return False


def _host_end(req: "Request", host: "Host", link: "Link") -> "Link":
    """Return the other end of the container's interface. Raises CNIError."""
    if link.kind != "veth":
        raise interface.drift(f"'{link.name}' is no veth but '{link.kind}'")
    ours = interface.host_end(host.netns, host.open_netns(req.netns), link)
    if ours is None:
        raise interface.drift(f"the host's end of '{link.name}' is missing")
    return ours
