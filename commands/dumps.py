"""The kernel objects of an attachment at this moment, read by pyroute2.

Its sockets and high-level interfaces spare decoders of our own where a quarter of a second for the
import does not matter; a plugin never loads them. An IPRoute belongs to the thread and to the
network namespace in which it was opened: each is opened, used and closed by a thread of
`NetNS.run`, and only words come out of there.
"""

from __future__ import annotations

import socket
import sys
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from cni_common.kernel.netns import NetNS

    Reader = Callable[[], Iterator[str]]

_CONNECTIONS_MAX = 10_000  # pyroute2 takes 0.1 ms to decode one
_LISTENING = {6: ("tcp", 1 << 10), 17: ("udp", 1 << 7)}  # states TCP_LISTEN, TCP_CLOSE of net/tcp.h
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
_MAIN, _LOCAL = 254, 255  # RT_TABLE_* of linux/rtnetlink.h
_UNICAST = 1  # RTN_UNICAST


@dataclass(frozen=True, slots=True)
class Dump:
    """One thing that the kernel has."""

    kind: str  # link, address, route, queue, listener, connections
    what: str


def of_container(netns: NetNS, ifname: str) -> list[Dump]:
    """Return link, addresses, routes and queues of an interface, and the sockets that listen."""
    readers = {
        "link": lambda: _links([ifname]),
        "address": lambda: _addresses(ifname),
        "route": lambda: _routes(ifname),
        "queue": lambda: _queues([ifname]),
        "listener": _listeners,
    }
    return netns.run(lambda: _read(readers))


def of_host(netns: NetNS, devices: Iterable[str], addresses: Iterable[str]) -> list[Dump]:
    """Return link and queues of `devices`, and how many connections there are of `addresses`."""
    names, hosts = sorted(devices), {ip_address(text.partition("/")[0]) for text in addresses}
    readers = {
        "link": lambda: _links(names),
        "queue": lambda: _queues(names),
        "connections": lambda: _connections(set(map(str, hosts))),
    }
    return netns.run(lambda: _read(readers))


def _read(readers: dict[str, Reader]) -> list[Dump]:
    """Return what each reader finds; one that fails, as without a kernel module, says why."""
    _do_without_openssl()
    from pyroute2.netlink.exceptions import NetlinkError

    found = []
    for kind, read in readers.items():
        try:
            found += [Dump(kind, text) for text in read()]
        except (OSError, NetlinkError) as error:
            found.append(Dump(kind, f"cannot be read: {error.args[-1]}"))
    return found


def _do_without_openssl() -> None:
    """Let pyroute2 be imported where there is no `ssl`, as in the bundle.

    pyroute2 needs it only to probe TLS servers. asyncio does without it, so asyncio comes first.
    """
    import asyncio  # noqa: F401 - see above
    from importlib.util import find_spec

    if "ssl" not in sys.modules and find_spec("ssl") is None:
        sys.modules["ssl"] = ModuleType("ssl")


def _links(names: list[str]) -> Iterator[str]:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        for link in _named(route, names):
            kind = link.get(("linkinfo", "kind")) or "device"
            yield (
                f"{link.get('ifname')} {link.get('address')} ({kind}) {link.get('state')},"
                f" mtu {link.get('mtu')}, {str(link.get('operstate')).lower()}"
            )


def _addresses(ifname: str) -> Iterator[str]:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        for link in _named(route, [ifname]):
            for one in route.get_addr(index=link["index"]):
                yield f"{one.get('local') or one.get('address')}/{one['prefixlen']}"


def _routes(ifname: str) -> Iterator[str]:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        for link in _named(route, [ifname]):
            for one in route.get_routes(oif=link["index"]):
                if one["type"] == _UNICAST and one.get("table") != _LOCAL:
                    yield _words_of_route(one)


def _words_of_route(route: Any) -> str:
    dst = f"{route.get('dst')}/{route['dst_len']}" if route["dst_len"] else "default"
    via = route.get("gateway") or (route.get("via") or {}).get("addr")
    metrics = route.get("metrics")
    table = route.get("table")
    parts = {
        "via": via,
        "metric": route.get("priority"),
        "mtu": metrics.get("mtu") if metrics else None,
        "table": None if table == _MAIN else table,
    }
    return " ".join([dst, *(f"{word} {value}" for word, value in parts.items() if value)])


def _queues(names: list[str]) -> Iterator[str]:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        for link in _named(route, names):
            for one in route.get_qdiscs(index=link["index"]):
                counters = one.get("stats")
                dropped = f", {counters['drop']} packets dropped" if counters else ""
                yield f"{one.get('kind')} {one['handle'] >> 16:x}: of {link.get('ifname')}{dropped}"


def _named(route: Any, names: list[str]) -> list[Any]:
    """Return those links of `names` that there are."""
    wanted = set(names)
    return [link for link in route.get_links() if link.get("ifname") in wanted]


def _listeners() -> Iterator[str]:
    from pyroute2 import DiagSocket

    with DiagSocket() as diag:
        for number, (protocol, states) in _LISTENING.items():
            for family in (socket.AF_INET, socket.AF_INET6):
                for one in diag.get_sock_stats(family=family, states=states, protocol=number):
                    yield f"{protocol} {one['idiag_src']} port {one['idiag_sport']}"


def _connections(addresses: set[str]) -> Iterator[str]:
    from pyroute2 import Conntrack

    if not addresses:
        return
    with Conntrack() as tracked:
        total = tracked.count()
        if total > _CONNECTIONS_MAX:
            yield f"{total} of all containers and the host, too many to look through"
            return
        counts = Counter(
            _PROTOCOLS.get(one.tuple_orig.proto, f"protocol {one.tuple_orig.proto}")
            for one in tracked.dump_entries()
            if addresses & {one.tuple_orig.saddr, one.tuple_orig.daddr, one.tuple_reply.saddr}
        )
    yield ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
