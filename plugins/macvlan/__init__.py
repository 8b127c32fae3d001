"""macvlan: an interface of the container's own, with its own MAC, on an interface of the host."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.node import interface, veth
from cni_common.node.device import Device
from cni_common.node.lifecycle import Lifecycle
from cni_common.spec.errors import drifted
from cni_common.spec.request import Command
from cni_common.spec.result import Interface, Result
from plugins.macvlan import link as macvlan
from plugins.macvlan import master
from plugins.macvlan.conf import PASSTHRU, SCHEMA, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching
    from cni_common.spec.errors import CNIError
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]

_DEVICE = Device(macvlan.KIND)
LIFECYCLE = Lifecycle("macvlan", _DEVICE, interface.CONFIGURATION, interface.IPAM)


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Make an interface on the master, with addresses where there is an IPAM plugin."""
    conf = Conf.of(req)
    if conf.ipam:
        host.is_ours(conf.ipam, req.path)  # raises when there is no such plugin, before any act
    container = host.open_netns(req.netns)
    veth.refuse_existing(container, req.ifname)
    below = container if conf.in_container else host.netns
    parent = master.find(below, conf)
    master.refuse_unfit(conf, parent)
    facts = [interface.IpamFacts(conf.ipam)] if conf.ipam else []
    attaching = LIFECYCLE.begin(req, host, undo, *facts)
    ours = _create(attaching, container, below, conf, parent=parent)
    result = Result()
    result.add_interface(Interface(ours.name, ours.mac, ours.mtu, req.netns))
    if conf.ipam:
        _allocate(req, host, conf, result, undo=undo)
        interface.note_configuration(attaching, ours.name, ours.mtu, result)
        # Any machine of the network may have the same address: duplicates are looked for.
        veth.configure(container, ours.name, ours.index, result, dad=True, routers=True)
    else:
        container.netlink.set_up(ours.index)
    return result


def delete(req: Request, host: Host) -> None:
    """Detach: from the record of what ADD made, else by what is found in the container."""
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
    if link is None:
        yield drifted(f"interface '{req.ifname}' is missing in '{req.netns}'")
    elif link.kind != macvlan.KIND:
        yield drifted(f"'{link.name}' is no macvlan but '{link.kind}'")
    else:
        yield from veth.check(container, link, expected)
        yield from _check_link(host, container, conf, link)


def gc(req: Request, host: Host) -> None:
    """Remove what belongs to no valid attachment of this network, then let IPAM do the same."""
    LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work now.

    7: the configuration; 50: no master, state, IPAM; 51: the master passes no packets.
    """
    conf = Conf.of(replace(req, environ={}))  # CNI_ARGS belong to an attachment
    if not conf.in_container:  # which of the containers it would be, STATUS does not say
        parent = master.find(host.netns, conf)
        master.refuse_unfit(conf, parent)
        master.refuse_down(parent)
    host.records.probe()
    if conf.ipam:
        host.delegate(conf.ipam, req, Command.STATUS)


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


def _create(
    attaching: Attaching, container: NetNS, below: NetNS, conf: Conf, *, parent: Link
) -> Link:
    """Make the interface, down, under its name in the container's namespace by one message."""
    mac = parent.mac if conf.mode == PASSTHRU else conf.mac or veth.random_mac()
    netns = -1 if conf.in_container else container.fd
    end = VethEnd(attaching.record.attachment.ifname, mac, conf.mtu, netns)
    return _DEVICE.create(
        attaching, container, mac, lambda: macvlan.create(below, parent, end, conf)
    )


def _allocate(req: Request, host: Host, conf: Conf, result: Result, *, undo: Undo) -> None:
    """Complete `result` by what IPAM gives."""
    (ours,) = result.interfaces
    given = interface.allocate(req, host, conf.ipam, undo, mtu=ours.mtu)
    result.ips, result.routes = given.ips, given.routes
    result.dns = given.dns if conf.dns is None else conf.dns
    for ip in result.ips:
        ip.interface = 0


def _check_link(host: Host, container: NetNS, conf: Conf, ours: Link) -> Iterator[CNIError]:
    """Yield an error if the interface has another master, and for each other setting."""
    if conf.master:  # a default route may have moved since, which no ADD undoes
        below = container if conf.in_container else host.netns
        nsid = None if conf.in_container else container.netlink.nsid(below.fd)
        parent = below.netlink.link(conf.master)
        if parent is None or (ours.peer, ours.peer_nsid) != (parent.index, nsid):
            yield drifted(f"'{ours.name}' is not on master '{conf.master}'")
    mode, queue = macvlan.settings(container, ours.index)
    if mode != conf.mode:
        yield drifted(f"mode of '{ours.name}' is {mode}, the configuration has {conf.mode}")
    if queue and conf.broadcast_queue and queue != conf.broadcast_queue:
        yield drifted(f"bcqueuelen of '{ours.name}' is {queue}, not {conf.broadcast_queue}")
