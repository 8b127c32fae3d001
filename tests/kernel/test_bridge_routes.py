"""bridge ADD: routes, with every field that IPAM may give."""

from __future__ import annotations

import errno
import os

import pytest

from tests.machine import Json, Machine

V4, V6 = {"subnet": "10.9.0.0/24"}, {"subnet": "fd00:9::/64"}


def ipam(machine: Machine, *subnets: Json, **keys: object) -> Json:
    """Return an `ipam` section with one range set per subnet."""
    ranges = [[subnet] for subnet in subnets]
    return {"type": "host-local", "dataDir": machine.data_dir, "ranges": ranges, **keys}


ROUTES = [
    ({"dst": "0.0.0.0/0"}, "default via 10.9.0.1 dev eth0"),
    ({"dst": "::/0"}, "default via fd00:9::1 dev eth0 metric 1024 pref medium"),
    ({"dst": "10.3.0.0/16", "gw": "10.9.0.9"}, "10.3.0.0/16 via 10.9.0.9 dev eth0"),
    (
        {"dst": "fd03::/48", "gw": "fd00:9::9"},
        "fd03::/48 via fd00:9::9 dev eth0 metric 1024 pref medium",
    ),
    ({"dst": "10.3.0.0/16", "gw": "0.0.0.0"}, "10.3.0.0/16 dev eth0"),
    ({"dst": "10.3.0.0/16", "scope": 253}, "10.3.0.0/16 dev eth0 scope link"),
    (
        {"dst": "10.3.0.0/16", "mtu": 1300, "advmss": 1200},
        "10.3.0.0/16 via 10.9.0.1 dev eth0 mtu 1300 advmss 1200",
    ),
    (
        {"dst": "fd03::/48", "mtu": 1300},
        "fd03::/48 via fd00:9::1 dev eth0 metric 1024 mtu 1300 pref medium",
    ),
    ({"dst": "10.3.0.0/16", "priority": 77}, "10.3.0.0/16 via 10.9.0.1 dev eth0 metric 77"),
    ({"dst": "10.3.0.0/16", "table": 100}, "10.3.0.0/16 via 10.9.0.1 dev eth0 table 100"),
    ({"dst": "10.3.0.0/16", "table": 1000}, "10.3.0.0/16 via 10.9.0.1 dev eth0 table 1000"),
]


@pytest.mark.parametrize(("route", "expected"), ROUTES, ids=[str(route) for route, _ in ROUTES])
def test_every_field_of_a_route_is_applied(machine: Machine, route: Json, expected: str) -> None:
    """The kernel has the route as IPAM gave it, the result passes it on, and CHECK finds it."""
    container = machine.container()
    config = machine.network(ipam=ipam(machine, V4, V6, routes=[route]))

    result = machine.ok("bridge", "ADD", config, container)

    family = "-6" if ":" in route["dst"] else "-4"
    listing = machine.command(container, "ip", family, "route", "show", "table", "all")
    assert expected in [" ".join(line.split()) for line in listing.splitlines()]
    assert result["routes"] == [route]
    machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)


def test_route_that_the_kernel_refuses(machine: Machine) -> None:
    """A route over a broadcast address fails the ADD, named, and nothing is left."""
    container = machine.container()
    routes = [{"dst": "10.3.0.0/16", "gw": "10.9.0.255"}]

    error = machine.refused(
        "bridge", "ADD", machine.network(ipam=ipam(machine, V4, routes=routes)), container
    )

    assert "add route 10.3.0.0/16 via 10.9.0.255" in error["msg"]
    assert os.strerror(errno.EINVAL) in error["msg"]
    assert f"(interface 'eth0' in '{container}')" in error["msg"]
    assert machine.leases() == []
    assert machine.ports() == []


@pytest.mark.both_edges
def test_thousand_routes(machine: Machine) -> None:
    """As many routes as a table of a data centre has are added, and DEL follows."""
    container = machine.container()
    routes = [{"dst": f"20.{number // 256}.{number % 256}.0/24"} for number in range(1000)]
    config = machine.network(ipam=ipam(machine, V4, routes=routes))

    machine.ok("bridge", "ADD", config, container)

    listing = machine.command(container, "ip", "route", "show", "dev", "eth0")
    assert listing.count("via 10.9.0.1") == 1000
    machine.ok("bridge", "DEL", config, container)
