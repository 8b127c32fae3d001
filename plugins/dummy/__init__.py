"""dummy: an interface that leads nowhere, for addresses that the container is to have."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.kernel.netlink import NetlinkError
from cni_common.node import interface, veth
from cni_common.node.device import Device
from cni_common.node.lifecycle import Lifecycle
from cni_common.spec.errors import CNIError, Code, drifted
from cni_common.spec.request import Command
from cni_common.spec.result import Interface
from plugins.dummy.conf import SCHEMA, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]

_KIND = "dummy"
_DEVICE = Device(_KIND)
LIFECYCLE = Lifecycle("dummy", _DEVICE, interface.CONFIGURATION, interface.IPAM)


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Make the interface with the addresses of IPAM."""
    conf = Conf.of(req)
    host.is_ours(conf.ipam, req.path)  # raises when there is no such plugin, before any act
    container = host.open_netns(req.netns)
    veth.refuse_existing(container, req.ifname)
    attaching = LIFECYCLE.begin(req, host, undo, interface.IpamFacts(conf.ipam))
    end = VethEnd(req.ifname, veth.random_mac())
    ours = _DEVICE.create(attaching, container, end.mac, lambda: _create(container, end))
    result = interface.allocate(req, host, conf.ipam, undo, mtu=ours.mtu)
    result.interfaces = [Interface(ours.name, ours.mac, ours.mtu, req.netns)]
    for ip in result.ips:
        ip.interface = 0
    if conf.dns is not None:
        result.dns = conf.dns
    interface.note_configuration(attaching, ours.name, ours.mtu, result)
    veth.configure(container, ours.name, ours.index, result)  # no other host is on the link
    return result


def delete(req: Request, host: Host) -> None:
    """Detach: from the record of what ADD made, else by what is found in the container."""
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
    if link is None:
        yield drifted(f"interface '{req.ifname}' is missing in '{req.netns}'")
    elif link.kind != _KIND:
        yield drifted(f"'{link.name}' is no dummy but '{link.kind}'")
    else:
        yield from veth.check(container, link, expected)


def gc(req: Request, host: Host) -> None:
    """Remove what belongs to no valid attachment of this network, then let IPAM do the same."""
    LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work now: 7 configuration, 50 state, IPAM."""
    conf = Conf.of(req)
    host.records.probe()
    host.delegate(conf.ipam, req, Command.STATUS)


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


def _create(container: NetNS, end: VethEnd) -> None:
    try:
        container.netlink.add_device(end, _KIND)
    except NetlinkError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            "the kernel has no interfaces of the kind dummy: load the module 'dummy'",
        ) from None
