"""rtnetlink of the calling thread's network namespace, by pyroute2.

A `Kernel` serves one application: it collects the requests that the kernel refuses as problems,
and the others go on. Reading takes 0.15 ms for each route and neighbour, a request 1 ms.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from ipaddress import IPv4Interface, IPv6Interface
    from types import TracebackType
    from typing import Any, Self, TypeVar

    from agent.cluster import Address, Network

    Interface = IPv4Interface | IPv6Interface
    T = TypeVar("T")

UNICAST, UNREACHABLE = 1, 7  # RTN_* of linux/rtnetlink.h
MAIN = 254  # RT_TABLE_MAIN
FAMILIES = {4: 2, 6: 10}  # AF_INET, AF_INET6
METRICS = {4: 0, 6: 1024}  # of a route that names none; IPv6: IP6_RT_PRIO_USER
_ONLINK = 4  # RTNH_F_ONLINK
_SKIP_STATS = 8  # RTEXT_FILTER_SKIP_STATS
_IFF_UP = 1
_TRIES = 5  # reads of a list that others change meanwhile


@dataclass(frozen=True, slots=True)
class Device:
    """A network interface."""

    index: int
    name: str
    kind: str  # IFLA_INFO_KIND, such as "vxlan"; "" for hardware
    mtu: int  # bytes
    mac: str
    group: int  # IFLA_GROUP
    up: bool
    data: dict[str, Any] = field(default_factory=dict, compare=False)  # of its kind, by pyroute2


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table, as it is wanted."""

    dst: Network
    via: Address | None = None
    device: int = 0  # its index, 0: none
    source: Address | None = None  # of packets of the node itself
    onlink: bool = False  # `via` is taken to be reachable on the device
    kind: int = UNICAST


@dataclass(frozen=True, slots=True)
class Found:
    """A route that the kernel has in its main table."""

    route: Route
    protocol: int
    metric: int
    hops: int = 1


class Kernel:
    """rtnetlink for one application."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.ip: Any = None

    def __enter__(self) -> Self:
        from pyroute2 import IPRoute

        self.ip = IPRoute()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.ip.close()

    def do(
        self,
        what: str,
        command: Callable[..., object],
        *words: object,
        absent: Collection[int] = (),
        **keys: object,
    ) -> bool:
        """Send a request; return False if it failed, which is a problem unless in `absent`.

        `what` completes "cannot ...". `absent` has the errnos that are no problem.
        """
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            command(*words, **keys)
        except NetlinkError as error:
            if error.code not in absent:
                self.problems.append(f"cannot {what}: {error.args[1]}")
            return False
        return True

    def attempt(self, step: Callable[[], T], otherwise: T) -> T:
        """Return what `step` returns; where it cannot read the kernel, that is a problem."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            return step()
        except NetlinkError as error:
            words = os.strerror(error.code) if error.code > 0 else error.args[1]
        except OSError as error:
            words = str(error)
        self.problems.append(f"the network between nodes stays as it is: netlink: {words}")
        return otherwise

    # --- reading ---

    def device(self, name: str = "", *, index: int = 0) -> Device | None:
        """Return a device by its name or its index, None if there is none."""
        from pyroute2.netlink.exceptions import NetlinkError

        which = {"index": index} if index else {"ifname": name}
        try:
            (link,) = self.ip.link("get", ext_mask=_SKIP_STATS, **which)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise
            return None
        return _device(link)

    def addresses(self, index: int = 0) -> list[tuple[int, Interface]]:
        """Return index and address of all devices, or of one."""
        keys = {"index": index} if index else {}
        return [
            (one["index"], ip_interface((one.get("local") or one.get("address"), one["prefixlen"])))
            for one in self._dump(self.ip.get_addr, **keys)
        ]

    def routes(self) -> list[Found]:
        """Return the routes of the main tables of both IP versions."""
        return [
            _found(one, version)
            for version, family in FAMILIES.items()
            for one in self._dump(self.ip.get_routes, family=family)
            if one["family"] == family and (one.get("table") or one["table"]) == MAIN
        ]

    def neighbours(self, family: int, index: int) -> list[Any]:
        """Return the neighbours of a device in an address family; AF_BRIDGE has the FDB."""
        return [
            one
            for one in self._dump(self.ip.get_neighbours, family)
            if one["ifindex"] == index and one["family"] == family
        ]

    def _dump(self, command: Callable[..., Any], *words: object, **keys: object) -> list[Any]:
        """Return a list, read anew if others have changed it meanwhile. Raises NetlinkError."""
        from pyroute2.netlink.exceptions import NetlinkDumpInterrupted

        for attempt in range(_TRIES):
            try:
                return list(command(*words, **keys))
            except NetlinkDumpInterrupted:
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError  # pragma: no cover - the loop returns or raises


def _device(link: Any) -> Device:
    info = link.get("linkinfo")
    kind = (info.get("kind") if info else "") or ""
    data = (info.get("data") if info else None) or {}
    return Device(
        link["index"],
        link.get("ifname"),
        kind,
        link.get("mtu"),
        link.get("address") or "",
        link.get("group") or 0,
        bool(link["flags"] & _IFF_UP),
        data=dict(data.get("attrs", ())) if data else {},
    )


def _found(one: Any, version: int) -> Found:
    dst = one.get("dst") or ("0.0.0.0" if version == 4 else "::")
    via = one.get("gateway") or (one.get("via") or {}).get("addr")
    source = one.get("prefsrc")
    unicast = one["type"] == UNICAST
    route = Route(
        ip_network((dst, one["dst_len"])),
        ip_address(via) if via else None,
        (one.get("oif") or 0) if unicast else 0,
        ip_address(source) if source else None,
        bool(one["flags"] & _ONLINK),
        one["type"],
    )
    return Found(route, one["proto"], one.get("priority") or 0, len(one.get("multipath") or "1"))
