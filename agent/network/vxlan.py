"""The overlay of mode vxlan: one device, and an entry of FDB and neighbours for each node.

Nothing is learned and nothing is flooded (RFC 7348 without its multicast): the MAC of a node's
device follows from the node's address, so every node knows it from the Node object.
"""

from __future__ import annotations

import errno
from hashlib import sha256
from typing import TYPE_CHECKING

from agent.network import overlay
from agent.network.kernel import AF_BRIDGE, FAMILIES, PERMANENT, Route
from agent.network.settings import VXLAN_DEVICE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agent.cluster import Address, Member, Network
    from agent.network.kernel import Device, Kernel
    from agent.network.plan import Peer
    from agent.network.settings import Settings

KIND = "vxlan"
_NOARP = 0x40  # NUD_NOARP of linux/neighbour.h
_NTF_SELF = 2


def mac_of(address: Address) -> str:
    """Return the MAC of the device of the node with this address: local, unicast.

    An IPv4 address is its last four bytes; of an IPv6 address a digest.
    """
    if address.version == 4:
        octets = b"\x0e\x70" + address.packed
    else:
        octets = b"\x0e" + sha256(address.packed).digest()[:5]
    return octets.hex(":")


def ensure(
    kernel: Kernel, settings: Settings, own: Member, *, version: int, mtu: int
) -> Device | None:
    """Return the device, with the node's addresses in it; None if that is impossible."""
    address = own.address(version)
    assert address, "the underlay has the version of an address of the node"
    local = "vxlan_local" if version == 4 else "vxlan_local6"

    def fits(device: Device) -> bool:
        data = device.data
        return (
            data.get("IFLA_VXLAN_ID") == settings.vni
            and data.get("IFLA_VXLAN_PORT") == settings.vxlan_port
            and data.get(f"IFLA_{local.upper()}") == str(address)
            and device.mac == mac_of(address)
        )

    device = overlay.ensure(
        kernel,
        VXLAN_DEVICE,
        KIND,
        mtu=mtu,
        fits=fits,
        address=mac_of(address),
        vxlan_id=settings.vni,
        vxlan_port=settings.vxlan_port,
        vxlan_learning=0,
        **{local: str(address)},
    )
    if device:
        overlay.address(kernel, device, own.ranges)
    return device


def reachable(peers: Iterable[Peer], version: int) -> tuple[list[Peer], list[str]]:
    """Return the nodes with an address of the underlay's version, and words about the others."""
    found, problems = [], []
    for peer in peers:
        if peer.member.address(version):
            found.append(peer)
        else:
            problems.append(
                f"no overlay to node '{peer.member.name}': it has no IPv{version} address, which"
                " the other nodes use; give it one (kubelet --node-ip)"
            )
    return found, problems


def routes(device: Device, own: Member, peers: Iterable[Peer]) -> dict[Network, Route]:
    """Return the routes to the pods of `peers` by the device, of the node's own IP versions."""
    sources = {network.version: overlay.inner(network) for network in own.ranges}
    return {
        network: Route(
            network,
            overlay.inner(network),
            device.index,
            source=sources[network.version],
            onlink=True,
        )
        for peer in peers
        for network in peer.ranges
        if network.version in sources
    }


def neighbours(peers: Iterable[Peer], version: int) -> dict[Address, str]:
    """Return the MAC behind each inner address."""
    outer = [(peer, peer.member.address(version)) for peer in peers]
    return {
        overlay.inner(network): mac_of(address)
        for peer, address in outer
        if address
        for network in peer.ranges
    }


def converge(kernel: Kernel, device: Device, peers: Sequence[Peer], version: int) -> None:
    """Have FDB and neighbours of the device lead to `peers`, and to no others."""
    _forward(kernel, device, peers, version)
    _resolve(kernel, device, neighbours(peers, version))


def _forward(kernel: Kernel, device: Device, peers: Iterable[Peer], version: int) -> None:
    """Have the FDB lead to the nodes: from a MAC to the address of the node that has it."""
    addresses = [peer.member.address(version) for peer in peers]
    wanted = {(mac_of(one), str(one)) for one in addresses if one}
    entries = kernel.neighbours(AF_BRIDGE, device.index)
    present = {(one.mac, one.dst) for one in entries}
    keys = {"ifindex": device.index, "state": PERMANENT | _NOARP, "flags": _NTF_SELF}
    fdb = kernel.ip.fdb
    for mac, dst in sorted(present - wanted):
        more = {"dst": dst} if dst else {}
        what = f"delete {mac} from the FDB of '{device.name}'"
        kernel.do(what, fdb, "del", absent=(errno.ENOENT,), lladdr=mac, **more, **keys)
    for mac, dst in sorted(wanted - present):
        what = f"add {mac} at {dst} to the FDB of '{device.name}'"
        kernel.do(what, fdb, "append", absent=(errno.EEXIST,), lladdr=mac, dst=dst, **keys)


def _resolve(kernel: Kernel, device: Device, macs: Mapping[Address, str]) -> None:
    """Have permanent neighbours: from the inner address of each range to its node's MAC."""
    wanted = {str(dst): mac for dst, mac in macs.items()}
    present = {
        one.dst: one.mac if one.permanent else ""
        for family in FAMILIES.values()
        for one in kernel.neighbours(family, device.index)
    }
    neigh, index = kernel.ip.neigh, device.index
    for dst, mac in present.items():
        if mac and dst not in wanted:
            what = f"delete neighbour {dst} of '{device.name}'"
            kernel.do(what, neigh, "del", absent=(errno.ENOENT,), dst=dst, ifindex=index)
    for dst, mac in wanted.items():
        if present.get(dst) != mac:
            what = f"set neighbour {dst} of '{device.name}'"
            kernel.do(what, neigh, "replace", dst=dst, lladdr=mac, ifindex=index, state=PERMANENT)
