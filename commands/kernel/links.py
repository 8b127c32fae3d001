"""Interfaces with their counters, addresses, routes, neighbours and queueing disciplines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Any

# linux/rtnetlink.h, linux/if_bridge.h, linux/if_addr.h, linux/neighbour.h, linux/pkt_sched.h
_TABLES = {253: "default", 254: "main", 255: "local"}
_ROUTE_TYPES = {1: "unicast", 2: "local", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_SHOWN_ROUTES = ("unicast", "blackhole", "unreachable", "prohibit")
_PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
_NEIGHBOUR_STATES = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x80: "permanent",
}
_ADDRESS_FLAGS = {0x08: "dadfailed", 0x20: "deprecated", 0x40: "tentative"}
_PLAIN_QUEUES = ("noqueue", "ingress", "clsact", "mq")
_FAMILIES = {2: 4, 10: 6}
_COUNTERS = tuple(
    f"{direction}_{what}"
    for direction in ("rx", "tx")
    for what in ("bytes", "packets", "dropped", "errors")
)
_UP = 1  # IFF_UP
BRIDGE, PAIR, VLAN, VRF = "bridge", "veth", "vlan", "vrf"  # kinds of interfaces
JOINING = (BRIDGE, VRF)
_UNTAGGED = 4  # BRIDGE_VLAN_INFO_UNTAGGED


@dataclass(frozen=True, slots=True)
class Port:
    """An interface as the port of a bridge."""

    state: str  # forwarding, blocking, ...
    flags: tuple[str, ...] = ()  # isolated, hairpin, ...


@dataclass(frozen=True, slots=True)
class Link:
    """One interface."""

    index: int
    name: str
    mac: str
    kind: str  # of the kernel; "device" for one without
    up: bool
    operstate: str
    mtu: int
    master: int = 0  # index of the bridge or VRF that it is a port of
    peer: int = 0  # index of the other end, or of the interface below
    peer_elsewhere: bool = False  # whether that index is of another namespace; for the JSON
    vlan: int = 0
    port: Port | None = None
    counters: dict[str, int] = field(default_factory=dict)  # packets and bytes since it was made


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an interface."""

    index: int
    address: str  # with prefix length
    flags: tuple[str, ...] = ()  # tentative, dadfailed, deprecated


@dataclass(frozen=True, slots=True)
class Route:
    """A route of any table but `local`."""

    index: int  # of the interface, 0 for none
    destination: str  # "default", or with prefix length
    family: int  # 4 or 6
    kind: str = "unicast"
    via: str = ""
    source: str = ""
    metric: int = 0
    mtu: int = 0  # bytes, 0: the interface's
    table: str = "main"

    def words(self) -> str:
        """Return the route as `ip route` has it, without its interface."""
        parts = {
            "via": self.via,
            "src": self.source,
            "metric": self.metric,
            "mtu": self.mtu,
            "table": "" if self.table == "main" else self.table,
        }
        head = self.destination if self.kind == "unicast" else f"{self.kind} {self.destination}"
        return " ".join([head, *(f"{word} {value}" for word, value in parts.items() if value)])


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the neighbour table: ARP or NDP."""

    index: int
    address: str
    mac: str
    state: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A queueing discipline, or one of its classes, and what it has counted."""

    index: int
    kind: str
    handle: str  # 1: of a discipline, 1:10 of a class
    rate: int  # bits per second, 0: no limit
    counters: dict[str, int]  # bytes, packets, dropped, overlimits, backlog (bytes)


def links() -> list[Link]:
    """Return all interfaces. Raises OSError, NetlinkError."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        return [_link(one) for one in route.get_links()]


def _link(one: Any) -> Link:
    counters = one.get("stats64") or {}
    data = one.get(("linkinfo", "data"))
    kind = str(one.get(("linkinfo", "kind")) or "device")
    return Link(
        one["index"],
        str(one.get("ifname")),
        str(one.get("address") or ""),
        kind,
        bool(one["flags"] & _UP),
        str(one.get("operstate") or "").lower(),
        int(one.get("mtu") or 0),
        int(one.get("master") or 0),
        int(one.get("link") or 0),
        one.get("link_netnsid") is not None,
        int(data.get("vlan_id") or 0) if kind == VLAN and data else 0,
        _port(one),
        {name: counters.get(name, 0) for name in _COUNTERS},
    )


def _port(one: Any) -> Port | None:
    if one.get(("linkinfo", "slave_kind")) != BRIDGE:
        return None
    data = one.get(("linkinfo", "slave_data"))
    state = data.get("IFLA_BRPORT_STATE") or 0
    set_flags = {
        "isolated": data.get("IFLA_BRPORT_ISOLATED"),
        "hairpin": data.get("IFLA_BRPORT_MODE"),
        "locked": data.get("IFLA_BRPORT_LOCKED"),
    }
    words = _PORT_STATES[state] if state < len(_PORT_STATES) else str(state)
    return Port(words, tuple(name for name, value in set_flags.items() if value))


def addresses() -> list[Address]:
    """Return all addresses. Raises OSError, NetlinkError."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        return [
            Address(
                one["index"],
                f"{one.get('local') or one.get('address')}/{one['prefixlen']}",
                _words(_ADDRESS_FLAGS, one.get("flags") or one["flags"]),
            )
            for one in route.get_addr()
        ]


def routes() -> list[Route]:
    """Return the routes of all tables but `local`. Raises OSError, NetlinkError."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        return list(_routes(route.get_routes()))


def _routes(found: Any) -> Iterator[Route]:
    for one in found:
        kind = _ROUTE_TYPES.get(one["type"], str(one["type"]))
        table = one.get("table") or one["table"]
        if kind not in _SHOWN_ROUTES or _TABLES.get(table) == "local":
            continue
        metrics = one.get("metrics")
        hops = one.get("multipath") or [one]
        for hop in hops:
            via = hop.get("gateway") or (hop.get("via") or {}).get("addr")
            yield Route(
                int(one.get("oif") or (hop.get("oif") if hop is not one else 0) or 0),
                f"{one.get('dst')}/{one['dst_len']}" if one["dst_len"] else "default",
                _FAMILIES.get(one["family"], 0),
                kind,
                str(via or ""),
                str(one.get("prefsrc") or ""),
                int(one.get("priority") or 0),
                int((metrics.get("mtu") if metrics else 0) or 0),
                _TABLES.get(table, str(table)),
            )


def neighbours() -> list[Neighbour]:
    """Return the entries that were asked for, or set by hand. Raises OSError, NetlinkError."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        return [
            Neighbour(
                one["ifindex"],
                str(one.get("dst")),
                str(one.get("lladdr") or ""),
                _NEIGHBOUR_STATES[one["state"]],
            )
            for one in route.get_neighbours()
            if one["family"] in _FAMILIES and one["state"] in _NEIGHBOUR_STATES
        ]


def queues(indexes: Collection[int]) -> list[Queue]:
    """Return what shapes or drops on these interfaces, with classes. Raises OSError, NetlinkError.

    Disciplines that have neither limited nor dropped anything by themselves, as `noqueue`, are left
    out.
    """
    from pyroute2 import IPRoute

    with IPRoute() as route:
        found = [one for index in indexes for one in route.get_qdiscs(index=index)]
        found = [one for one in found if one.get("kind") not in _PLAIN_QUEUES]
        queued = {one["index"] for one in found}
        classes = [one for index in queued for one in route.get_classes(index=index)]
        shaping = [one for one in map(_queue, classes) if one.rate]  # one of tbf says no more
        return [*map(_queue, found), *shaping]


def _queue(one: Any) -> Queue:
    counters = one.get("stats") or {}
    major, minor = one["handle"] >> 16, one["handle"] & 0xFFFF
    return Queue(
        one["index"],
        str(one.get("kind")),
        f"{major:x}:{minor:x}" if minor else f"{major:x}:",
        8 * _rate_of(one.get("options")),
        {
            "bytes": counters.get("bytes", 0),
            "packets": counters.get("packets", 0),
            "dropped": counters.get("drop", 0),
            "overlimits": counters.get("overlimits", 0),
            "backlog": counters.get("backlog", 0),
        },
    )


def _rate_of(options: Any) -> int:
    """Return the limit of a discipline or class, bytes per second, 0 for none."""
    if not hasattr(options, "get_attr"):
        return 0
    for wide, parms in (
        ("TCA_TBF_RATE64", "TCA_TBF_PARMS"),
        ("TCA_HTB_RATE64", "TCA_HTB_PARMS"),
    ):
        found = options.get_attr(parms)
        if found:
            large = options.get_attr(wide)
            return int(large) if isinstance(large, int) else int(found["rate"])
    return 0


def _words(names: dict[int, str], flags: int) -> tuple[str, ...]:
    return tuple(name for bit, name in names.items() if flags & bit)


def vlans() -> dict[int, list[str]]:
    """Return the VLANs of each port of a bridge that filters them, by the port's index.

    The usual one, 1 without a tag, is left out. Raises OSError, NetlinkError.
    """
    from pyroute2 import IPRoute

    with IPRoute() as route:
        found = {one["index"]: list(_vlans(one)) for one in route.get_vlans()}
    return {index: names for index, names in found.items() if names not in ([], ["1 untagged"])}


def _vlans(one: Any) -> Iterator[str]:
    spec = one.get("af_spec")
    for entry in spec.get_attrs("IFLA_BRIDGE_VLAN_INFO") if spec else ():
        yield f"{entry['vid']} untagged" if entry["flags"] & _UNTAGGED else str(entry["vid"])
