"""The bridge of the node's pods, which the plugin makes: removes what must not stay of it.

A range that the node had before leaves its gateway there. With that address comes a route to the
whole range, which may be another node's by now.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from agent.leases import leased
from agent.network.settings import BRIDGE_DEVICE
from cni_common.node import namespaces

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.cluster import Member
    from agent.network.kernel import Interface, Kernel

KIND = "bridge"
_SHOWN_MAX = 5  # ports


def remove_old_gateways(
    kernel: Kernel, own: Member, leases: Path, log: Callable[[str], object]
) -> None:
    """Remove gateways of ranges that the node has no more, unless pods have addresses of these.

    A pod has what its namespace shows, and what has a lease: not each namespace can be read. Other
    addresses are not the agent's. Raises NetlinkError, OSError.
    """
    device = kernel.device(BRIDGE_DEVICE)
    if device is None or device.kind != KIND:
        return
    old = [one for _, one in kernel.addresses(device.index) if _is_old_gateway(one, own)]
    if not old:
        return
    try:
        in_use = {*leased(leases)}
    except OSError as error:
        log(f"a gateway of a range before stays: cannot read '{leases}': {error.strerror}")
        return
    in_use |= namespaces.addresses_in(namespaces.reachable().values(), log)
    for gateway in old:
        if any(one in gateway.network for one in in_use if one != gateway.ip):
            continue  # a later look removes it
        removed = kernel.do(
            f"remove {gateway}, of a range before, from '{BRIDGE_DEVICE}'",
            kernel.ip.addr,
            "del",
            index=device.index,
            address=str(gateway.ip),
            prefixlen=gateway.network.prefixlen,
        )
        if removed:
            log(f"removed {gateway}, the gateway of a range before, from '{BRIDGE_DEVICE}'")


def remove(kernel: Kernel, log: Callable[[str], object]) -> None:
    """Delete the bridge of the pods, which the plugin never removes, unless it has ports.

    With it goes the route to the node's range. Raises NetlinkError, OSError.
    """
    device = kernel.device(BRIDGE_DEVICE)
    if device is None or device.kind != KIND:
        return
    ports = [one for one in kernel.ip.get_links() if one.get_attr("IFLA_MASTER") == device.index]
    if ports:
        names = ", ".join(sorted(str(one.get_attr("IFLA_IFNAME")) for one in ports[:_SHOWN_MAX]))
        log(f"'{BRIDGE_DEVICE}' stays, as it has ports ({len(ports)}): {names}")
        return
    what = f"delete '{BRIDGE_DEVICE}'"
    kernel.do(what, kernel.ip.link, "del", absent=(errno.ENODEV,), index=device.index)


def _is_old_gateway(address: Interface, own: Member) -> bool:
    """Tell whether host-local has given an address to the bridge for a range that is gone."""
    network = address.network
    if address.is_link_local or address.ip != network.network_address + 1:
        return False
    return not any(one.version == network.version and one.overlaps(network) for one in own.ranges)
