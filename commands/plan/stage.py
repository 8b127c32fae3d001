"""The stage of a plan: a pretend host with the node's uplinks, and a container beside it.

All of it is in network and mount namespaces of a process of its own (commands/throwaway.py).
"""

from __future__ import annotations

import os
from ipaddress import ip_network
from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.kernel.netns import OWN, NetNS
from cni_common.node.host import STATE_DIR
from cni_common.node.journal import make_directory
from cni_common.spec.result import Route
from commands import throwaway
from commands.kernel.links import BRIDGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_common.kernel.link import Link
    from cni_common.spec.names import Address, Cidr
    from commands.plan.guests import Guests

CONTAINER = "/run/netns/container"
DATA_DIR = "/run/plan"  # where leases go whose configured directory cannot be covered
COVERED = ("/run/", "/var/lib/cni/")
_PEER = "plan-peer"


class Uplink:
    """An interface of the node that the pretend host gets, too, as one end of a pair."""

    def __init__(self, link: Link, addresses: Sequence[Cidr], gateways: Sequence[Address]) -> None:
        """`gateways` are those of default routes over it."""
        self.name, self.mac, self.mtu = link.name, link.mac, link.mtu
        self.is_bridge = link.kind == BRIDGE
        self.addresses = addresses
        self.gateways = gateways


def uplinks(netns: NetNS, wanted: Sequence[str]) -> list[Uplink]:
    """Return the interfaces of default routes, and those that a configuration names."""
    links = {one.index: one for one in netns.netlink.links() if one.name != "lo"}
    gateways: dict[int, list[Address]] = {}
    for version in (4, 6):
        for found in netns.netlink.all_routes(version):
            if not found.route.dst.prefixlen and found.interface and found.route.gw:
                gateways.setdefault(found.interface, []).append(found.route.gw)
    chosen = [one for one in links.values() if one.index in gateways or one.name in wanted]
    return [
        Uplink(
            one,
            [cidr for cidr, _ in netns.netlink.addresses(one.index) if not cidr.is_link_local],
            gateways.get(one.index, ()),
        )
        for one in chosen
    ]


def place(path: str) -> str:
    """Return where the stage has a file or directory of the plugins' state."""
    return path if path.startswith(COVERED) else f"{DATA_DIR}{path}"


def build(found: Sequence[Uplink], guests: Guests | None = None) -> NetNS:
    """Make the stage in this process's own namespaces; return the pretend host. Raises OSError."""
    throwaway.mount_sysfs()
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    before = {path: os.open(path, flags) for path in COVERED if os.path.isdir(path)}
    for path in before:
        throwaway.mount_tmpfs(path)
    for path in ("/run/netns", "/run/lock", STATE_DIR):
        make_directory(path, 0o755)
    _make_container()
    if guests:
        guests.move_in(before)
    for fd in before.values():
        os.close(fd)
    host = NetNS(OWN)
    _set_up(host, "lo")
    for number, one in enumerate(found):
        _make_uplink(host, one, number)
    return host


def _make_container() -> None:
    """Make the container's namespace, which its mount keeps. Only for a process of one thread."""
    own = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        throwaway.unshare_network()
        with open(CONTAINER, "w", encoding="ascii"):
            pass
        throwaway.bind(OWN, CONTAINER)
    finally:
        throwaway.return_to(own)
        os.close(own)
    container = NetNS(CONTAINER)
    try:
        _set_up(container, "lo")
    finally:
        container.close()


def _make_uplink(host: NetNS, one: Uplink, number: int) -> None:
    netlink, peer = host.netlink, f"{_PEER}{number}"
    if one.is_bridge:
        netlink.add_bridge(one.name, mac=one.mac, mtu=one.mtu)
    else:
        netlink.add_veth(VethEnd(one.name, one.mac, one.mtu), VethEnd(peer, "", one.mtu))
    for name in (one.name, peer):
        _set_up(host, name)
    link = netlink.link(one.name)
    if link:
        routes = [
            Route(ip_network("::/0" if gw.version == 6 else "0.0.0.0/0"), gw) for gw in one.gateways
        ]
        netlink.configure(link.index, one.addresses, routes, dad=False)


def _set_up(netns: NetNS, name: str) -> None:
    link = netns.netlink.link(name)
    if link:
        netns.netlink.set_up(link.index)
