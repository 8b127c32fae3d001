"""loopback: sets the container's lo up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code, drifted
from cni_common.spec.request import PROTOCOL_SCHEMA
from cni_common.spec.result import Interface, IPConfig, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]

SCHEMA = PROTOCOL_SCHEMA  # no keys of its own
_NAME = "lo"  # CNI_IFNAME does not matter: a namespace has one loopback interface
_MAC = "00:00:00:00:00:00"


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Set lo up; return prevResult, or else lo with its first address of each family.

    Raises CNIError 999 if lo has an address that is no loopback address, NetlinkError.
    """
    container = host.open_netns(req.netns)
    previous = req.prev_result
    link = _lo(container)
    if not link.up:
        undo.push("lo", lambda: container.netlink.set_down(link.index))
        container.netlink.set_up(link.index)
    addresses = [cidr for cidr, _ in container.netlink.addresses(link.index)]
    for cidr in addresses:
        if not cidr.ip.is_loopback:
            raise CNIError(
                Code.INTERNAL,
                f"lo in '{req.netns}' has {cidr}, which is not a loopback address; remove it",
            )
    if previous is not None:
        return previous
    result = Result()
    index = result.add_interface(Interface(_NAME, _MAC, link.mtu, req.netns))
    for version in (4, 6):
        first = next((cidr for cidr in addresses if cidr.version == version), None)
        if first is not None:
            result.ips.append(IPConfig(first, interface=index))
    return result


def delete(req: Request, host: Host) -> None:
    """Set lo down, if its namespace still exists and can be entered.

    An obstacle is only logged: lo goes with its namespace, and keeps nothing of the node.
    """
    if not req.netns:
        return
    try:
        container = host.open_netns(req.netns)
    except CNIError:
        return  # the namespace is gone, and lo with it
    try:
        container.netlink.set_down(_lo(container).index)
    except (CNIError, OSError) as error:
        reason = error.msg if isinstance(error, CNIError) else error.strerror
        host.log(f"loopback: network {req.network}: DEL leaves lo as it is: {reason}")


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error if lo is down, and for each loopback address of prevResult that it lacks."""
    container = host.open_netns(req.netns)
    link = _lo(container)
    if not link.up:
        yield drifted(f"lo in '{req.netns}' is down", "set it up there")
    present = {cidr for cidr, _ in container.netlink.addresses(link.index)}
    previous = req.prev_result
    for ip in previous.ips if previous else ():
        if ip.address.ip.is_loopback and ip.address not in present:
            yield drifted(f"address {ip.address} of lo in '{req.netns}' is missing")


def gc(req: Request, host: Host) -> None:
    """Nothing to do: lo is removed with its namespace."""


def status(req: Request, host: Host) -> None:
    """Nothing can keep lo from coming up."""


def lifecycle() -> None:
    """Return nothing: attachments have no record."""


def _lo(container: NetNS) -> Link:
    link = container.netlink.link(_NAME)
    if link is None:
        raise CNIError(Code.INTERNAL, f"'{container.path}' has no lo")
    return link
