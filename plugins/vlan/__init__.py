"""vlan: an interface of the container's own for one VLAN of an interface of the host."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.netns import NETLINK_ROUTE
from cni_common.kernel.rtnetlink import RTMGRP_LINK
from cni_common.node import device, interface, master, veth
from cni_common.node.device import Device
from cni_common.node.lifecycle import Lifecycle
from cni_common.spec.errors import CNIError, Code, drifted
from cni_common.spec.request import Command
from plugins.vlan import link as vlan
from plugins.vlan.conf import SCHEMA, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]

_DEVICE = Device(vlan.KIND, module=vlan.MODULE, own_mac=False)
_ENDING_SECONDS = 2.0  # in which the kernel takes the interfaces of a namespace away
LIFECYCLE = Lifecycle("vlan", _DEVICE, interface.CONFIGURATION, master.MASTER, interface.IPAM)


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Make an interface for the VLAN on the master, with the addresses of IPAM."""
    conf = Conf.of(req)
    host.is_ours(conf.ipam, req.path)  # raises when there is no such plugin, before any act
    container = host.open_netns(req.netns)
    veth.refuse_existing(container, req.ifname)
    below = container if conf.in_container else host.netns
    parent = _fit_master(below, conf)
    if not conf.vlan:
        host.log(
            f'vlan: network {req.network}: "vlanId" is 0, which is no VLAN: the frames have a'
            " priority alone; set it to 1 to 4094"
        )
    use = master.MasterFacts(parent.name, parent.index, conf.in_container, _use(conf))
    attaching = LIFECYCLE.begin(req, host, undo, use, interface.IpamFacts(conf.ipam))
    ours = _create(attaching, host, conf, container=container, below=below, parent=parent)
    result = device.allocate(req, host, attaching, ours, ipam=conf.ipam, dns=conf.dns)
    device.configure(attaching, container, ours, result, has_neighbours=True)
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
    below = container if conf.in_container else host.netns
    yield from master.check(below, container, conf.master, link)
    number = vlan.id_of(container, link.index)
    if number != conf.vlan:
        yield drifted(f"VLAN of '{link.name}' is {number}, the configuration has {conf.vlan}")
    told = any(one.name == link.name and one.mtu for one in req.require_prev_result().interfaces)
    if conf.mtu and conf.mtu != link.mtu and not told:  # results before 1.1.0 have no MTU
        yield drifted(f"MTU of '{link.name}' is {link.mtu}, the configuration has {conf.mtu}")


def gc(req: Request, host: Host) -> None:
    """Remove what belongs to no valid attachment of this network, then let IPAM do the same."""
    LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work now.

    7: the configuration; 50: no master, master down, state, IPAM; 51: the master has no carrier.
    """
    conf = Conf.of(req)
    if not conf.in_container:  # which of the containers it would be, STATUS does not say
        master.refuse_down(_fit_master(host.netns, conf))
    host.records.probe()
    host.delegate(conf.ipam, req, Command.STATUS)


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


def _use(conf: Conf) -> str:
    return f"VLAN {conf.vlan}"


def _fit_master(netns: NetNS, conf: Conf) -> Link:
    """Return the master. Raises CNIError 50 if it is missing or down, 7 for too large an MTU."""
    parent = master.find(netns, conf.master)
    master.refuse_mtu(conf.mtu, parent)
    if not parent.up:  # the kernel sets no VLAN up on it (ENETDOWN)
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"master '{parent.name}' is down, so no interface for a VLAN of it can be up: run 'ip"
            f" link set {parent.name} up'",
        )
    return parent


def _create(
    attaching: Attaching,
    host: Host,
    conf: Conf,
    *,
    container: NetNS,
    below: NetNS,
    parent: Link,
) -> Link:
    """Make the interface, down, under its name in the container's namespace by one message."""
    name = attaching.record.attachment.ifname
    end = VethEnd(name, "", conf.mtu, -1 if conf.in_container else container.fd)

    def is_made() -> bool:
        try:
            vlan.create(below, parent, end, conf.vlan)
        except NetlinkError as error:
            if error.errno != errno.EEXIST or container.netlink.identify(name) is not None:
                raise
            return False
        return True

    def make() -> None:
        if is_made():
            return
        user = _user_of(attaching, host, conf, below=below, parent=parent)
        # One in a namespace that has just ended goes by itself, of which the master tells.
        events = partial(below.channel, NETLINK_ROUTE, RTMGRP_LINK)
        if user or not veth.wait_until(is_made, events, _ENDING_SECONDS):
            raise CNIError(
                Code.INTERNAL,
                f"VLAN {conf.vlan} of master '{parent.name}' has an interface already, and can have"
                f" one alone: {user or 'in a namespace of another program'}; delete that, or choose"
                ' another "vlanId"',
            )

    return _DEVICE.create(attaching, container, parent.mac, make)


def _user_of(attaching: Attaching, host: Host, conf: Conf, *, below: NetNS, parent: Link) -> str:
    """Describe the other interface for the VLAN, "" if it is unknown."""
    use = _use(conf)
    user = master.user_of(host, attaching.record, lambda other: other == use)
    if user:
        return f"for {user}"
    name = vlan.name_of(below, parent, conf.vlan)
    return f"'{name}' in '{below.path}'" if name else ""
