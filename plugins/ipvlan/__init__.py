"""ipvlan: an interface of the container's own on one of the host, with that one's MAC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.node import device, interface, master, veth
from cni_common.node.device import Device
from cni_common.node.lifecycle import Lifecycle
from cni_common.spec.errors import CNIError, Code, drifted
from cni_common.spec.request import Command
from cni_common.spec.result import Interface, Result
from plugins.ipvlan import chain
from plugins.ipvlan import link as ipvlan
from plugins.ipvlan.conf import L2, SCHEMA, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]

_DEVICE = Device(ipvlan.KIND, own_mac=False)
LIFECYCLE = Lifecycle("ipvlan", _DEVICE, interface.CONFIGURATION, master.MASTER, interface.IPAM)


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Make an interface on the master, with addresses of IPAM or of the plugin before."""
    conf, previous = Conf.of(req), req.prev_result
    if conf.ipam:
        host.is_ours(conf.ipam, req.path)  # raises when there is no such plugin, before any act
    container = host.open_netns(req.netns)
    veth.refuse_existing(container, req.ifname)
    below = container if conf.in_container else host.netns
    parent = master.find(below, conf.master or chain.master_in(previous))
    inherited = Result() if conf.ipam else _inherited(previous, conf, parent)
    _warn_of_mtu(req, host, conf, parent)
    facts = [interface.IpamFacts(conf.ipam)] if conf.ipam else []
    use = master.MasterFacts(parent.name, parent.index, conf.in_container, _use(conf.mode))
    attaching = LIFECYCLE.begin(req, host, undo, use, *facts)
    _refuse_other_mode(attaching, host, conf, parent)
    ours = _create(attaching, container, below, conf, parent=parent)
    if conf.ipam:
        given = device.allocate(req, host, attaching, ours, ipam=conf.ipam, dns=conf.dns)
    else:
        given = _as_result(inherited, Interface(ours.name, ours.mac, ours.mtu, req.netns), conf)
    device.configure(attaching, container, ours, given, has_neighbours=conf.mode == L2)
    return chain.behind(previous, given, parent.name)


def delete(req: Request, host: Host) -> None:
    """Detach: from the record of what ADD made, else by what is found in the container."""
    LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each difference from the result of ADD."""
    conf = Conf.of(req)
    link = yield from _DEVICE.check(req, host, conf.ipam)
    if link is None:
        return
    container = host.open_netns(req.netns)
    if conf.master:  # a default route may have moved since, which no ADD undoes
        below = container if conf.in_container else host.netns
        yield from master.check(below, container, conf.master, link)
    mode = ipvlan.mode_of(container, link.index)
    if mode != conf.mode:
        yield drifted(
            f"mode of '{link.name}' is {mode}, the configuration has {conf.mode}; all interfaces on"
            " one master have the mode of the last that was made"
        )


def gc(req: Request, host: Host) -> None:
    """Remove what belongs to no valid attachment of this network, then let IPAM do the same."""
    LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work now.

    7: the configuration; 50: no master, state, IPAM; 51: the master passes no packets. Without IPAM
    a plugin before names the master, which STATUS is not told.
    """
    conf = Conf.of(req)
    if not conf.in_container and (conf.master or conf.ipam):
        master.refuse_down(master.find(host.netns, conf.master))
    host.records.probe()
    if conf.ipam:
        host.delegate(conf.ipam, req, Command.STATUS)


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


def _use(mode: str) -> str:
    return f"mode {mode}"


def _inherited(previous: Result | None, conf: Conf, parent: Link) -> Result:
    """Return the addresses that a plugin before has for the interface. Raises CNIError 7."""
    found = chain.given_to_us(previous, parent.name)
    if not found.ips:
        raise CNIError(
            Code.INVALID_CONFIG,
            'ipvlan has no address for the interface: name an IPAM plugin in "ipam", or put ipvlan'
            " behind a plugin whose result has addresses",
        )
    interface.refuse_small_mtu(found.ips, conf.mtu or parent.mtu)
    return found


def _as_result(inherited: Result, ours: Interface, conf: Conf) -> Result:
    """Return what is inherited, for the interface."""
    for ip in inherited.ips:
        ip.interface = 0
    dns = inherited.dns if conf.dns is None else conf.dns
    return Result([ours], inherited.ips, inherited.routes, dns)


def _warn_of_mtu(req: Request, host: Host, conf: Conf, parent: Link) -> None:
    """Log when the interface may send packets that do not fit the master, as the reference's."""
    if conf.mtu > parent.mtu:
        host.log(
            f"ipvlan: network {req.network}: \"mtu\" is {conf.mtu}, and master '{parent.name}' has"
            f" {parent.mtu} bytes: longer packets are lost"
        )


def _refuse_other_mode(attaching: Attaching, host: Host, conf: Conf, parent: Link) -> None:
    """Raise CNIError 7 if the master has interfaces in another mode: the new one would change it.

    The kernel keeps one mode for each master, that of the interface that was made last.
    """
    user = master.user_of(host, attaching.record, lambda use: use != _use(conf.mode))
    if user:
        raise CNIError(
            Code.INVALID_CONFIG,
            f"master '{parent.name}' carries ipvlan in another mode than {conf.mode}, for {user}:"
            ' all interfaces on one master share its "mode"; use the same, or another master',
        )


def _create(
    attaching: Attaching, container: NetNS, below: NetNS, conf: Conf, *, parent: Link
) -> Link:
    """Make the interface, down, under its name in the container's namespace by one message."""
    netns = -1 if conf.in_container else container.fd
    end = VethEnd(attaching.record.attachment.ifname, "", conf.mtu, netns)
    return _DEVICE.create(
        attaching, container, parent.mac, lambda: ipvlan.create(below, parent, end, conf.mode)
    )
