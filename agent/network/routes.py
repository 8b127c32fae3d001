"""Routes to the pods of other nodes, in the main table, marked by their protocol.

Only routes with our protocol are changed. A route of others to the same range is left alone, and
ours is not put beside it.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from typing import TYPE_CHECKING

from agent.network.kernel import MAIN, METRICS, ONLINK, UNICAST
from agent.network.settings import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from agent.cluster import Network
    from agent.network.kernel import Found, Kernel, Route


def converge(kernel: Kernel, wanted: Mapping[Network, Route], present: Iterable[Found]) -> None:
    """Have the routes of our protocol be those `wanted`, by destination."""
    ours: defaultdict[Network, list[Found]] = defaultdict(list)
    foreign: defaultdict[Network, list[Found]] = defaultdict(list)
    for one in present:
        (ours if one.protocol == PROTOCOL else foreign)[one.route.dst].append(one)
    for dst, route in wanted.items():
        if not _is_taken(kernel, route, foreign.get(dst, ()), ours=bool(ours.get(dst))):
            _set(kernel, route, ours.get(dst, []))
    for dst, left in ours.items():
        keep = wanted.get(dst)
        for one in left:
            if keep is None or one.metric != METRICS[dst.version]:
                _delete(kernel, one)


def remove(kernel: Kernel) -> None:
    """Delete all routes of our protocol."""
    converge(kernel, {}, kernel.routes())


def _is_taken(kernel: Kernel, route: Route, foreign: Iterable[Found], *, ours: bool) -> bool:
    """Tell whether a route of others stands in the way, which is a problem unless it serves as
    well.

    One that leads the same way, such as kindnet's, serves as long as it is there. One with another
    metric does not keep ours from staying.
    """
    for one in foreign:
        if one.hops == 1 and (one.route.via, one.route.device) == (route.via, route.device):
            continue
        kernel.problems.append(
            f"no route to {route.dst}: there is one that is not the agent's, {_words(one)}; delete"
            f" it with 'ip route del {route.dst}' unless you need it"
        )
    same = any(one.metric == METRICS[route.dst.version] for one in foreign)
    return same or (bool(foreign) and not ours)


def _set(kernel: Kernel, route: Route, ours: Iterable[Found]) -> None:
    there = [one for one in ours if one.metric == METRICS[route.dst.version]]
    if any(one.route == route and one.hops == 1 for one in there):
        return
    # Replaced by one request, so no packet meets a table without the route; but where the kernel
    # would refuse it.
    if any(_bars(one.route, route) for one in there):
        for one in there:
            _delete(kernel, one)
        there = []
    command = "replace" if there else "add"
    kernel.do(f"add the route to {route.dst}", kernel.ip.route, command, **_keys(route))


def _bars(present: Route, route: Route) -> bool:
    """Tell whether a route keeps the kernel from taking another in its place.

    IPv6 refuses a next hop that is taken to be on a link while a route leads to it by another
    device (net/ipv6/route.c, ip6_route_check_nh_onlink). In the overlay it is in its own range.
    """
    return route.dst.version == 6 and route.onlink and present.device != route.device


def _delete(kernel: Kernel, one: Found) -> None:
    keys = _keys(one.route) | {"priority": one.metric}
    what = f"delete the route to {one.route.dst}"
    kernel.do(what, kernel.ip.route, "del", absent=(errno.ESRCH, errno.ENODEV), **keys)


def _keys(route: Route) -> dict[str, Any]:
    """Return a route in the words of pyroute2."""
    keys: dict[str, Any] = {
        "dst": str(route.dst),
        "family": 2 if route.dst.version == 4 else 10,
        "proto": PROTOCOL,
        "table": MAIN,
        "type": route.type,
    }
    if route.via:
        keys["gateway"] = str(route.via)
    if route.device:
        keys["oif"] = route.device
    if route.source:
        keys["prefsrc"] = str(route.source)
    if route.onlink:
        keys["flags"] = ONLINK
    if route.type == UNICAST and not route.via:
        keys["scope"] = 253 if route.dst.version == 4 else 0  # RT_SCOPE_LINK
    return keys


def _words(one: Found) -> str:
    if one.hops > 1:
        return f"over {one.hops} next hops (protocol {one.protocol})"
    via = f"via {one.route.via} " if one.route.via else ""
    return f"{via}by interface {one.route.device} (protocol {one.protocol}, metric {one.metric})"
