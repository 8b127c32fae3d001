"""The master, the interface below: how it is found, and what can be made on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel.route import RT_TABLE_MAIN, RTN_UNICAST
from cni_common.spec.errors import CNIError, Code
from plugins.macvlan.conf import PASSTHRU

if TYPE_CHECKING:
    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from plugins.macvlan.conf import Conf

_DOWN = ("DOWN", "LOWERLAYERDOWN", "NOTPRESENT")  # operational states without a carrier


def find(netns: NetNS, conf: Conf) -> Link:
    """Return the master in `netns`. Raises CNIError 50 if there is none."""
    if conf.master:
        link = netns.netlink.link(conf.master)
        if link is None:
            raise CNIError(
                Code.PLUGIN_NOT_AVAILABLE,
                f"there is no interface '{conf.master}' in '{netns.path}': correct \"master\", or"
                " bring the interface back",
            )
        return link
    index = _default_interface(netns)
    link = netns.netlink.link_at(index) if index else None
    if link is None:
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"'{netns.path}' has no default route that would name the master: set \"master\"",
        )
    return link


def refuse_unfit(conf: Conf, link: Link) -> None:
    """Raise CNIError 7 if no interface as configured can be made on the master `link`."""
    if conf.mtu > link.mtu:
        raise CNIError(
            Code.INVALID_CONFIG,
            f'"mtu" is {conf.mtu}, and master \'{link.name}\' has {link.mtu} bytes: lower "mtu"',
        )
    if conf.mode == PASSTHRU and conf.mac not in ("", link.mac):
        raise CNIError(
            Code.INVALID_CONFIG,
            f"in mode passthru the container's interface has the MAC of master '{link.name}',"
            f" {link.mac}: {conf.mac} cannot be set",
        )


def refuse_down(link: Link) -> None:
    """Raise CNIError 51 if the master passes no packets."""
    if not link.up or link.operstate in _DOWN:
        raise CNIError(
            Code.LIMITED_CONNECTIVITY,
            f"master '{link.name}' is {'without a carrier' if link.up else 'down'}: no container on"
            " it reaches anything",
        )


def _default_interface(netns: NetNS) -> int:
    """Return the index of the interface with the best default route, IPv4 first; 0: none."""
    for version in (4, 6):
        found = [
            (route.route.priority or 0, route.interface)
            for route in netns.netlink.all_routes(version)
            if not route.route.dst.prefixlen
            and route.kind == RTN_UNICAST
            and route.interface
            and route.route.table == RT_TABLE_MAIN
        ]
        if found:
            return min(found, key=lambda one: one[0])[1]
    return 0
