"""dummy: an interface that leads nowhere, for addresses that the container is to have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.node import device, interface, veth
from cni_common.node.device import Device
from cni_common.node.lifecycle import Lifecycle
from cni_common.spec.request import Command
from plugins.dummy.conf import SCHEMA, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.spec.errors import CNIError
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]

_DEVICE = Device("dummy")
LIFECYCLE = Lifecycle("dummy", _DEVICE, interface.CONFIGURATION, interface.IPAM)


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Make the interface with the addresses of IPAM."""
    conf = Conf.of(req)
    host.is_ours(conf.ipam, req.path)  # raises when there is no such plugin, before any act
    container = host.open_netns(req.netns)
    veth.refuse_existing(container, req.ifname)
    attaching = LIFECYCLE.begin(req, host, undo, interface.IpamFacts(conf.ipam))
    end = VethEnd(req.ifname, veth.random_mac())
    ours = _DEVICE.create(
        attaching, container, end.mac, lambda: container.netlink.add_device(end, _DEVICE.kind)
    )
    result = device.allocate(req, host, attaching, ours, ipam=conf.ipam, dns=conf.dns)
    device.configure(attaching, container, ours, result, has_neighbours=False)
    return result


def delete(req: Request, host: Host) -> None:
    """Detach: from the record of what ADD made, else by what is found in the container."""
    LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each difference from the result of ADD."""
    conf = Conf.of(req)
    yield from _DEVICE.check(req, host, conf.ipam)


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
