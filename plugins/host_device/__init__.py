"""host-device: a device of the host for the container alone, until its DEL brings it home."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node import interface, veth
from cni_common.spec.errors import CNIError, Code, drifted
from cni_common.spec.ipam_config import has_advertised_routes
from cni_common.spec.request import Command
from cni_common.spec.result import Interface, Result
from plugins.host_device import sysfs
from plugins.host_device.conf import SCHEMA, Conf
from plugins.host_device.facts import MovedFacts
from plugins.host_device.find import find
from plugins.host_device.parts import LIFECYCLE, MOVED, PLUGIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching, Lifecycle
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Move the device into the container, with addresses where there is an IPAM plugin."""
    conf = Conf.of(req)
    conf.refuse_nothing()
    if conf.ipam:
        host.is_ours(conf.ipam, req.path)  # raises when there is no such plugin, before any act
    container = host.open_netns(req.netns)
    veth.refuse_existing(container, req.ifname)
    facts = [interface.IpamFacts(conf.ipam)] if conf.ipam else []
    pci = sysfs.pci_address(conf)
    is_bare = sysfs.is_without_interface(conf, pci)
    attaching = LIFECYCLE.begin(req, host, undo, *facts)
    ours = Interface(req.ifname, sandbox=req.netns, pci_id=pci)
    index = 0
    if is_bare:
        MOVED.reserve(attaching, host, conf.device_id or pci)
    else:
        device = _take(attaching, host, container, conf, pci=pci)
        by_pci = "" if conf.device or conf.mac or conf.kernel_path else pci
        index = device.index
        ours = Interface(device.name, device.mac, device.mtu, req.netns, pci_id=by_pci)
    result = Result()
    if conf.ipam:
        result = interface.allocate(req, host, conf.ipam, attaching, mtu=ours.mtu)
        result.dns = result.dns if conf.dns is None else conf.dns
    result.interfaces = [ours]
    for ip in result.ips:
        ip.interface = 0
    if not is_bare:
        _set_up(attaching, container, index, result)
    return result


def delete(req: Request, host: Host) -> None:
    """Detach: from the record of what ADD moved, else by what is found in the container."""
    LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each difference from the result of ADD."""
    conf = Conf.of(req)
    conf.refuse_nothing()
    if conf.ipam:
        yield from interface.check_ipam(req, host, conf.ipam)
    expected = req.require_prev_result()
    if sysfs.is_without_interface(conf, sysfs.pci_address(conf)):
        return
    # Other plugins of the chain may have added addresses of other interfaces.
    expected = replace(expected, ips=veth.ips_of(expected, req.ifname))
    container = host.open_netns(req.netns)
    link = container.netlink.link(req.ifname)
    if link is None:
        yield drifted(f"interface '{req.ifname}' is missing in '{req.netns}'")
        return
    yield from _check_device(req, host, container, link)
    yield from veth.check(container, link, expected)


def gc(req: Request, host: Host) -> None:
    """Bring home what no valid attachment of this network has, then let IPAM do the same."""
    LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work: 7 configuration, 50 no device, state, IPAM.

    A device that a container has is where it should be.
    """
    conf = Conf.of(req)
    if conf.names_device or not req.config.get("capabilities", {}).get("deviceID"):
        conf.refuse_nothing()
        _refuse_missing(host, conf)
    host.records.probe()
    if conf.ipam:
        host.delegate(conf.ipam, req, Command.STATUS)


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


def _take(attaching: Attaching, host: Host, container: NetNS, conf: Conf, *, pci: str) -> Link:
    """Move the device into the container, and return it. Raises CNIError, NetlinkError."""
    wanted = partial(find, host, conf, pci)
    device_id = conf.device_id or pci
    return MOVED.take(attaching, host, container, find=wanted, pci=device_id).link


def _set_up(attaching: Attaching, container: NetNS, index: int, result: Result) -> None:
    """Configure the device with what IPAM has given, if anything, and set it up."""
    (ours,) = result.interfaces
    if result.ips:
        interface.note_configuration(attaching, ours.name, ours.mtu, result)
        # Any machine of the network may have the same address: duplicates are looked for.
        advertised = has_advertised_routes(attaching.config)
        veth.configure(
            container, ours.name, index, result, dad=True, routers=True, advertised=advertised
        )
    else:
        container.netlink.set_up(index)


def _refuse_missing(host: Host, conf: Conf) -> None:
    """Raise CNIError 50 if the device is neither at home nor in a container, 7 if it is unclear."""
    pci = sysfs.pci_address(conf)
    if sysfs.is_without_interface(conf, pci):
        return
    try:
        find(host, conf, pci)
    except CNIError as error:
        if error.code != Code.TRY_AGAIN_LATER:
            raise


def _check_device(req: Request, host: Host, container: NetNS, link: Link) -> Iterator[CNIError]:
    """Yield an error if the interface is another one than ADD has moved, as the record tells."""
    record = host.records.peek(host.records.path_of(PLUGIN, req.network, req.attachment))
    facts = record.get(MovedFacts) if record else None
    if record is None or facts is None or record.facts.get("netns_id") != container.identity:
        return
    if facts.index != link.index:
        yield drifted(f"'{link.name}' is not the device '{facts.name}' that ADD has moved")
