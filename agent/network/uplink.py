"""Finds the devices to the other nodes, and the MTU that they leave to pods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.network.kernel import UNICAST
from agent.network.settings import OVERHEAD, PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from agent.cluster import Address, Member
    from agent.network.kernel import Device, Found, Interface, Kernel

IPV6_MTU_MIN = 1280  # bytes, RFC 8200 section 5


class Neighbourhood:
    """The networks in which this node is itself, by the routes without a gateway."""

    def __init__(self, routes: Iterable[Found]) -> None:
        # By IP version and prefix length: of each network, the route that is used, by its metric.
        self._best: dict[tuple[int, int], dict[int, Found]] = {}
        for one in routes:
            dst = one.route.dst
            if one.protocol == PROTOCOL:
                continue
            level = self._best.setdefault((dst.version, dst.prefixlen), {})
            rival = level.get(int(dst.network_address))
            if rival is None or one.metric < rival.metric:
                level[int(dst.network_address)] = one
        self._lengths = sorted((length for _, length in self._best), reverse=True)

    def device_to(self, address: Address) -> int:
        """Return the index of the device on whose link an address is, 0 if it is on none."""
        for length in self._lengths:
            level = self._best.get((address.version, length))
            if not level:
                continue
            spare = address.max_prefixlen - length
            found = level.get(int(address) >> spare << spare)
            if found:
                is_direct = found.route.type == UNICAST and not found.route.via
                return found.route.device if is_direct and found.hops == 1 else 0
        return 0


@dataclass(frozen=True, slots=True)
class Uplinks:
    """The device to the other nodes for each IP version that the node has an address of."""

    devices: Mapping[int, Device]

    def mtu(self, mode: str, version: int) -> int:
        """Return the MTU that pods can have, in bytes; 0 without a device.

        `version` is that between the nodes of an overlay.
        """
        overhead = OVERHEAD[mode][version] if version else 0
        chosen = [self.devices[version]] if overhead and version in self.devices else []
        mtus = [one.mtu for one in chosen or self.devices.values()]
        return max(min(mtus, default=0) - overhead, 0)


def find(
    kernel: Kernel, own: Member, addresses: Collection[tuple[int, Interface]], name: str
) -> Uplinks:
    """Return the devices with the node's addresses, or the one called `name` for all.

    An address that is on no device, or a name that no device has, is a problem.
    """
    if name:
        chosen = kernel.device(name)
        if chosen is None:
            kernel.problems.append(
                f"there is no interface '{name}', which is set as the uplink; correct the setting,"
                " or leave it empty to have the interface with the node's address"
            )
        versions: list[int] = [one.version for one in own.addresses] if chosen else []
        return Uplinks(dict.fromkeys(versions, chosen) if chosen else {})
    places = {interface.ip: index for index, interface in addresses}
    found: dict[int, Device] = {}
    for address in own.addresses:
        index = places.get(address)
        device = kernel.device(index=index) if index else None
        if device:
            found[address.version] = device
        else:
            kernel.problems.append(
                f"no interface has this node's address {address}; correct the node's InternalIP"
                " (kubelet --node-ip), or set the uplink by its name"
            )
    return Uplinks(found)


def refuse_small(kernel: Kernel, mtu: int, versions: Collection[int]) -> None:
    """Note as a problem an MTU that is too small for IPv6, where pods have that."""
    if 6 in versions and 0 < mtu < IPV6_MTU_MIN:
        kernel.problems.append(
            f"the MTU of pods, {mtu}, is below the {IPV6_MTU_MIN} bytes that IPv6 needs; raise the"
            " MTU of the uplink"
        )
