"""tap: an interface whose frames go to a program in user space, such as qemu."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node import device, interface, veth
from cni_common.node.device import Device
from cni_common.node.lifecycle import Lifecycle
from cni_common.spec.errors import CNIError, Code, drifted
from cni_common.spec.request import Command
from cni_common.spec.result import Interface, Result
from plugins.tap import selinux, tun
from plugins.tap.conf import SCHEMA, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]

_DEVICE = Device(tun.KIND)
LIFECYCLE = Lifecycle("tap", _DEVICE, interface.CONFIGURATION, interface.IPAM)


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Make the tap, with addresses where there is an IPAM plugin; it lasts from the end on."""
    conf = Conf.of(req)
    if conf.ipam:
        host.is_ours(conf.ipam, req.path)  # raises when there is no such plugin, before any act
    if conf.context:
        selinux.require(conf.context)
    container = host.open_netns(req.netns)
    veth.refuse_existing(container, req.ifname)
    bridge = _bridge(container, conf)
    facts = [interface.IpamFacts(conf.ipam)] if conf.ipam else []
    with tun.Opened(None if conf.context else container) as fd:
        attaching = LIFECYCLE.begin(req, host, undo, *facts)
        ours = _create(attaching, container, fd, conf, bridge=bridge)
        if conf.ipam:
            result = device.allocate(req, host, attaching, ours, ipam=conf.ipam, dns=conf.dns)
            # The program on the other end has not opened it yet: no duplicate could be found.
            device.configure(attaching, container, ours, result, has_neighbours=False)
        else:
            result = Result(interfaces=[Interface(ours.name, ours.mac, ours.mtu, req.netns)])
            container.netlink.set_up(ours.index)
        if fd >= 0:
            _DEVICE.adopt(attaching, ours)
            tun.keep(fd, ours.name)
    # The carrier went with the descriptor: if asked, the kernel notes that at once (Linux 6.8).
    container.netlink.link_at(ours.index)
    return result


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
    found = tun.settings(container, link.index)
    for what, has, wants in (
        ("owner", found.owner, conf.owner),
        ("group", found.group, conf.group),
        ("multiQueue", found.multi_queue, conf.multi_queue),
    ):
        if has != wants:
            yield drifted(f"{what} of '{link.name}' is {has}, the configuration has {wants}")
    if conf.bridge:
        bridge = container.netlink.link(conf.bridge)
        if bridge is None or link.master != bridge.index:
            yield drifted(f"'{link.name}' is no port of bridge '{conf.bridge}'")


def gc(req: Request, host: Host) -> None:
    """Remove what belongs to no valid attachment of this network, then let IPAM do the same."""
    LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work: 7 configuration, 50 driver, state, IPAM."""
    conf = Conf.of(replace(req, environ={}))  # CNI_ARGS belong to an attachment
    if conf.context:
        selinux.require(conf.context)
    with tun.Opened(host.netns):
        host.records.probe()
    if conf.ipam:
        host.delegate(conf.ipam, req, Command.STATUS)


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


def _bridge(container: NetNS, conf: Conf) -> Link | None:
    """Return the container's bridge. Raises CNIError 50 if it is missing."""
    if not conf.bridge:
        return None
    link = container.netlink.link(conf.bridge)
    if link is None or link.kind != "bridge":
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"there is no bridge '{conf.bridge}' in the container, '{container.path}': correct"
            ' "bridge", or have another network make it first',
        )
    return link


def _create(
    attaching: Attaching, container: NetNS, fd: int, conf: Conf, *, bridge: Link | None
) -> Link:
    """Make the tap and return it, down. A tap of the descriptor `fd` ends with this process.

    In an SELinux context `fd` is -1, and the tap lasts.
    """
    name, mac = attaching.record.attachment.ifname, conf.mac or veth.random_mac()
    if fd >= 0:
        tun.create(fd, name, mac, conf)
        ours = veth.required(container, name)
    else:
        make = partial(selinux.create, container, name, mac, conf)
        ours = _DEVICE.create(attaching, container, mac, make)
    if bridge:
        container.netlink.set_master(ours.index, bridge.index)
    if not conf.mtu or conf.mtu == ours.mtu:
        return ours
    container.netlink.set_mtu(ours.index, conf.mtu)
    return veth.required(container, name)
