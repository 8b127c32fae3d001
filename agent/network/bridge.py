"""What a range that the node had before has left on the bridge of its pods: the gateway.

With that address comes a route to the whole range, which may be another node's by now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.leases import leased
from agent.network.settings import BRIDGE_DEVICE
from cni_common.node.survey import addresses_in, reachable_namespaces

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.cluster import Member
    from agent.network.kernel import Interface, Kernel

KIND = "bridge"


def remove_old_gateways(
    kernel: Kernel, own: Member, leases: Path, log: Callable[[str], object]
) -> None:
    """Remove gateways of ranges that the node has no more, unless pods have addresses of these.

    A pod has what its namespace shows, and what has a lease: not each namespace can be read. Other
    addresses are somebody else's. Raises NetlinkError, OSError.
    """
    device = kernel.device(BRIDGE_DEVICE)
    if device is None or device.kind != KIND:
        return
    old = [one for _, one in kernel.addresses(device.index) if _is_old_gateway(one, own)]
    if not old:
        return
    in_use = {*addresses_in(reachable_namespaces().values(), log), *leased(leases)}
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


def _is_old_gateway(address: Interface, own: Member) -> bool:
    """Tell whether host-local has given an address to the bridge for a range that is gone."""
    network = address.network
    if address.is_link_local or address.ip != network.network_address + 1:
        return False
    return not any(one.version == network.version and one.overlaps(network) for one in own.ranges)
