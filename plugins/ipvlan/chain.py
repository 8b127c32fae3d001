"""ipvlan behind another plugin: the parts of prevResult that it takes, and those that it leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.result import Result

if TYPE_CHECKING:
    from cni_common.spec.result import IPConfig


def master_in(previous: Result | None) -> str:
    """Return the only interface of prevResult, "" without prevResult.

    Raises CNIError 7 if there is another number of them.
    """
    if previous is None:
        return ""
    names = [interface.name for interface in previous.interfaces]
    if len(names) == 1 and names[0]:
        return names[0]
    raise CNIError(
        Code.INVALID_CONFIG,
        f"prevResult has {len(names)} interfaces, where a single named one would be the master: set"
        ' "master"',
    )


def given_to_us(previous: Result | None, master: str) -> Result:
    """Return the addresses of prevResult that are for the new interface, its routes and DNS.

    Addresses of other interfaces in the container are left out. Raises CNIError 7.
    """
    if previous is None:
        return Result()
    previous.refuse_contradictions("prevResult")
    ips = [replace(ip) for ip in previous.ips if not _is_others(previous, ip, master)]
    return Result([], ips, list(previous.routes), dict(previous.dns))


def behind(previous: Result | None, given: Result, master: str) -> Result:
    """Return the result of the chain: prevResult's interfaces, and `given`, which has ours alone.

    Addresses of prevResult stay where they are those of other interfaces in the container.
    """
    if previous is None:
        return given
    for ip in given.ips:
        ip.interface = len(previous.interfaces)
    kept = [ip for ip in previous.ips if _is_others(previous, ip, master)]
    interfaces = [*previous.interfaces, *given.interfaces]
    return Result(interfaces, [*kept, *given.ips], given.routes, given.dns)


def _is_others(previous: Result, ip: IPConfig, master: str) -> bool:
    """Tell whether an address is that of an interface in the container, not of the master."""
    if ip.interface is None:
        return False
    if not 0 <= ip.interface < len(previous.interfaces):
        raise CNIError(
            Code.INVALID_CONFIG,
            f"prevResult: address {ip.address} is for interface {ip.interface}, and there are"
            f" {len(previous.interfaces)}",
        )
    interface = previous.interfaces[ip.interface]
    return bool(interface.sandbox) and interface.name != master
