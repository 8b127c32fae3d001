"""Routes as netlink reads them, beside what `ip route` tells of the same ones."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from cni_common.kernel.netns import NetNS
from cni_common.kernel.route import KernelRoute, decode_route
from cni_common.spec.names import Address
from cni_common.spec.result import Route
from tests.machine import Machine

pytestmark = pytest.mark.without_engine("reads what `ip` made")

LINKS = (
    "ip link add one up type veth peer name two",
    "ip link set two up",
    "ip address add 10.1.0.1/24 dev one",
    "ip address add 10.2.0.1/24 dev two",
    "ip address add fd01::1/64 dev one nodad",
    "ip address add fd02::1/64 dev two nodad",
)
ROUTES = {
    "default": "default via 10.1.0.2",
    "default of IPv6": "default via fd01::2",
    "on the link": "192.0.2.0/24 dev one scope link",
    "host": "192.0.2.1 dev one",
    "host of IPv6": "fd10::1 dev one",
    "metric": "192.0.3.0/24 via 10.1.0.2 metric 77",
    "greatest metric": "192.0.3.0/24 via 10.1.0.2 metric 4294967295",
    "metrics": "192.0.4.0/24 via 10.1.0.2 mtu 1300 advmss 1200 window 9000 rto_min 5ms",
    "metrics of IPv6": "fd14::/64 via fd01::2 mtu 1300 advmss 1200 hoplimit 9",
    "locked metric": "192.0.5.0/24 via 10.1.0.2 mtu lock 1300",
    "congestion control": "192.0.6.0/24 via 10.1.0.2 congctl reno advmss 1111",
    "source": "192.0.7.0/24 via 10.1.0.2 src 10.1.0.1",
    "table of one byte": "192.0.8.0/24 via 10.1.0.2 table 100",
    "table above 255": "192.0.8.0/24 via 10.1.0.2 table 1000",
    "greatest table": "fd18::/64 via fd01::2 table 4294967295",
    "protocol": "192.0.9.0/24 via 10.1.0.2 proto 186",
    "advertised": "default via fd01::3 proto ra metric 5",
    "expires": "fd19::/64 via fd01::2 expires 600",
    "multipath": "192.0.10.0/24 nexthop via 10.1.0.2 weight 2 nexthop via 10.2.0.2",
    "multipath of IPv6": "fd20::/64 nexthop via fd01::2 nexthop via fd02::2",
    "gateway of IPv6": "192.0.11.0/24 via inet6 fd01::2",
    "multipath of both": "192.0.12.0/24 nexthop via 10.1.0.2 nexthop via inet6 fd02::2 dev two",
    "not on the link": "192.0.13.0/24 via 172.16.0.1 dev one onlink",
    "next hop object": "192.0.14.0/24 nhid 7",
    "next hop object of IPv6": "fd24::/64 nhid 8",
    "group of next hops": "fd25::/64 nhid 9",
    "blackhole object": "192.0.15.0/24 nhid 10",
    "type of service": "192.0.16.0/24 tos 0x10 via 10.1.0.2",
    "from a source": "fd26::/64 from fd01::/64 via fd01::2",
    **{
        f"{kind} of {subnet}": f"{kind} {subnet}"
        for number, kind in enumerate(("blackhole", "unreachable", "prohibit", "throw"))
        for subnet in (f"198.51.100.{number}", f"fd30::{number}")
    },
    "local": "local 198.51.101.1 dev one",
    "broadcast": "broadcast 198.51.102.255 dev one",
    "multicast": "multicast 239.1.0.0/16 dev one",
    "anycast": "anycast fd31::1 dev one",
    "encapsulated": "198.51.103.0/24 encap ip id 5 dst 10.1.0.9 dev one",
}
NEXT_HOPS = (
    "ip nexthop add id 7 via 10.1.0.2 dev one",
    "ip nexthop add id 8 via fd01::2 dev one",
    "ip nexthop add id 81 via fd02::2 dev two",
    "ip nexthop add id 9 group 8/81",
    "ip nexthop add id 10 blackhole",
)


# RTNH_F_* of linux/rtnetlink.h, as `ip` names them.
_FLAGS = {"dead": 1, "pervasive": 2, "onlink": 4, "offload": 8, "linkdown": 16, "unresolved": 32}


def _as_ip_says(machine: Machine, version: int) -> list[KernelRoute]:
    links = json.loads(machine.command(machine.host, "ip", "-j", "link"))
    indices = {link["ifname"]: link["ifindex"] for link in links}
    words = f"ip -N -d -j -{version} route show table all"
    # Of an encapsulated route `ip` tells "dst" twice, the outer one last.
    found = json.loads(
        machine.command(machine.host, *words.split()),
        object_pairs_hook=lambda pairs: dict(reversed(pairs)),
    )
    return [_route(one, indices, version) for one in found]


def _route(said: dict[str, Any], indices: dict[str, int], version: int) -> KernelRoute:
    everything = "0.0.0.0/0" if version == 4 else "::/0"
    dst = everything if said["dst"] == "default" else said["dst"]
    (metrics,) = said.get("metrics", [{}])
    hops = [(gateway_of(hop), indices[hop["dev"]]) for hop in said.get("nexthops", ())]
    return KernelRoute(
        Route(
            dst=ip_network(dst),
            gw=gateway_of(said),
            mtu=metrics.get("mtu"),
            advmss=metrics.get("advmss"),
            priority=said.get("metric"),
            table=int(said["table"]),
            scope=int(said["scope"]),
        ),
        type=int(said["type"]),
        protocol=int(said["protocol"]),
        interface=indices.get(said.get("dev", ""), 0),
        hops=tuple(hops),
        flags=sum(_FLAGS[flag] for flag in said.get("flags", ())),
        source=ip_address(said["prefsrc"]) if "prefsrc" in said else None,
    )


def gateway_of(said: dict[str, Any]) -> Address | None:
    """Return the gateway of a route or of one of its next hops."""
    gateway = said.get("gateway") or said.get("via", {}).get("host")
    return ip_address(gateway) if gateway else None


def _add_all(machine: Machine) -> dict[str, str]:
    """Add ROUTES and return what the kernel said of those that it refused."""
    machine.do(machine.host, *LINKS, *NEXT_HOPS)
    refused = {}
    for name, route in ROUTES.items():
        family = "-6" if "fd" in route.split(" via inet6")[0] else "-4"
        done = machine.try_command(machine.host, "ip", family, "route", "add", *route.split())
        if done.returncode:
            refused[name] = done.stderr
    return refused


def test_every_route_is_read_as_ip_shows_it(machine: Machine) -> None:
    """The decoder and `ip route` agree on each attribute that CHECK reads."""
    refused = _add_all(machine)
    netns = NetNS(machine.host)

    found = {version: netns.netlink.all_routes(version) for version in (4, 6)}
    index = netns.netlink.identify("one")
    over_one = netns.netlink.routes(index[0] if index else 0)
    advertised = netns.netlink.advertised_defaults()

    netns.close()
    said = {version: _as_ip_says(machine, version) for version in (4, 6)}
    everything = [*said[4], *said[6]]
    assert refused == {}
    assert len(everything) > len(ROUTES)
    assert [
        pair
        for version in (4, 6)
        for pair in zip(found[version], said[version], strict=True)
        if pair[0] != pair[1]
    ] == []
    assert index is not None
    assert over_one == [
        replace(one.route, gw=gateway) if one.hops else one.route
        for one in everything
        for gateway, where in one.hops or [(None, one.interface)]
        if (where, one.type) == (index[0], 1)
    ]
    assert any(one.hops for one in said[4])
    assert any(one.hops for one in said[6])
    assert advertised == {index[0]}


def test_a_route_of_another_family_is_left_out() -> None:
    """Where the kernel has no IPv6 it answers with routes of MPLS and of multicast, too."""
    header = struct.pack("=IHHII", 28, 24, 2, 1, 0)

    found = {
        family: decode_route(header + struct.pack("=8BI", family, *[0] * 8))
        for family in (2, 10, 28, 128)
    }

    assert [family for family, route in found.items() if route is None] == [28, 128]
