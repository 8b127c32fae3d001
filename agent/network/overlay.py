"""The common work on the devices of both overlays: made, recognised, addressed, removed."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from agent.network.settings import GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from agent.cluster import Address, Network
    from agent.network.kernel import Device, Kernel
    from cni_common.kernel.netns import NetNS

_IFA_F_NODAD = 2  # linux/if_addr.h


def inner(network: Network) -> Address:
    """Return the address of a node in the overlay: the first one of its pods' range.

    No pod gets that one. Packets of the node itself to pods elsewhere have it as their source, so
    the answers come back by the overlay.
    """
    return network.network_address


def ensure(
    kernel: Kernel,
    name: str,
    kind: str,
    *,
    mtu: int,
    fits: Callable[[Device], bool] = lambda _device: True,
    **attrs: Any,
) -> Device | None:
    """Return the device, up, made anew unless it `fits`; None if that is impossible.

    A device of others with this name is a problem, and is left alone.
    """
    device = kernel.device(name)
    if device and not is_ours(device, kind):
        kernel.problems.append(
            f"interface '{name}' is not the agent's (kind '{device.kind}', group {device.group}):"
            " the overlay cannot be made; rename that interface or delete it"
        )
        return None
    if device and not fits(device):
        kernel.do(f"delete '{name}'", kernel.ip.link, "del", index=device.index)
        device = kernel.device(name)
        if device:
            return None
    if device is None:
        kernel.do(
            f"make {kind} interface '{name}'; is the module '{kind}' there?",
            kernel.ip.link,
            "add",
            ifname=name,
            kind=kind,
            mtu=mtu,
            group=GROUP,
            **attrs,
        )
        device = kernel.device(name)
    if device and (device.mtu != mtu or not device.up):
        what = f"set '{name}' up with MTU {mtu}"
        kernel.do(what, kernel.ip.link, "set", index=device.index, mtu=mtu, state="up")
        device = kernel.device(name)
    return device


def address(kernel: Kernel, device: Device, networks: Iterable[Network]) -> None:
    """Give the device the node's address in each of its ranges, and no others."""
    wanted = {inner(network) for network in networks}
    present = {one.ip: one for _, one in kernel.addresses(device.index) if not one.is_link_local}
    for one in sorted(wanted - present.keys(), key=str):
        kernel.do(
            f"add address {one} to '{device.name}'",
            kernel.ip.addr,
            "add",
            index=device.index,
            address=str(one),
            prefixlen=one.max_prefixlen,
            flags=_IFA_F_NODAD if one.version == 6 else 0,
        )
    for one in sorted(present.keys() - wanted, key=str):
        kernel.do(
            f"delete address {one} from '{device.name}'",
            kernel.ip.addr,
            "del",
            absent=(errno.EADDRNOTAVAIL, errno.ENODEV),
            index=device.index,
            address=str(one),
            prefixlen=present[one].network.prefixlen,
        )


def set_sysctls(netns: NetNS, name: str) -> None:
    """Set what the device needs beside rtnetlink, as far as /proc/sys can be written.

    Reverse path filter loose (2, which wins over a strict one of "all"): in mode auto two nodes may
    decide differently whether they are on one link. No router is on the other side.
    """
    netns.sysctls(
        {
            f"net/ipv4/conf/{name}/rp_filter": "2",
            f"net/ipv6/conf/{name}/accept_ra": "0",
        }
    )


def remove(kernel: Kernel, name: str, kind: str) -> None:
    """Delete the device if it is ours."""
    device = kernel.device(name)
    if device and is_ours(device, kind):
        what = f"delete '{name}'"
        kernel.do(what, kernel.ip.link, "del", absent=(errno.ENODEV,), index=device.index)


def is_ours(device: Device, kind: str) -> bool:
    """Tell whether the agent has made a device."""
    return device.kind == kind and device.group == GROUP
