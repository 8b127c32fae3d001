"""ADDs that succeed although packets cannot flow: each says so, by one line in the log."""

from __future__ import annotations

import pytest

from tests.machine import Json, Machine

V6 = {"subnet": "2001:db8:5:333::/64"}


def told(machine: Machine, *words: str) -> list[str]:
    """Return the lines of the log that have all of the words."""
    return [line for line in machine.log if all(word in line for word in words)]


def ipam(machine: Machine, *ranges: Json, **keys: object) -> Json:
    """Return an `ipam` section with one range set per range."""
    sets = [[one] for one in ranges]
    return {"type": "host-local", "dataDir": machine.data_dir, "ranges": sets, **keys}


def test_all_is_well(machine: Machine) -> None:
    """An ordinary ADD has nothing to say."""
    config = machine.network(ipMasq=True, ipam=ipam(machine, {"subnet": "10.9.0.0/24"}, V6))

    machine.ok("bridge", "ADD", config, machine.container())

    assert machine.log == []


@pytest.mark.parametrize(
    ("first", "way"), [("192.0.2.10", "over 'uplink'"), ("192.0.2.1", "to itself")]
)
def test_a_subnet_that_the_host_has_elsewhere(machine: Machine, first: str, way: str) -> None:
    """The host answers over its other interface of that subnet, which was there before."""
    machine.outside()
    subnet = {"subnet": "192.0.2.0/24", "gateway": "192.0.2.9", "rangeStart": first}

    machine.ok("bridge", "ADD", machine.network(ipam=ipam(machine, subnet)), machine.container())

    assert told(machine, f"network {machine.name}", f"packets for {first} {way}", "another subnet")


def test_a_subnet_of_a_point_to_point_link_that_the_host_has_elsewhere(machine: Machine) -> None:
    """ptp takes a gateway that may be another machine's; a subnet of its own is not mentioned."""
    machine.outside()
    subnets = ({"subnet": "192.0.2.0/24", "gateway": "192.0.2.2", "rangeStart": "192.0.2.10"}, V6)
    config = machine.network(type="ptp", bridge=None, isGateway=None, ipam=ipam(machine, *subnets))

    for containerid in ("c1", "c2"):
        machine.ok("ptp", "ADD", config, machine.container(), containerid=containerid)

    assert len(machine.log) == 2
    assert told(machine, f"network {machine.name}", "'uplink' has the subnet of 192.0.2.10/24")
    assert told(machine, "192.0.2.11/24", "this host has 192.0.2.2 itself", "another subnet")


def test_an_address_without_its_subnet(machine: Machine) -> None:
    """The host has no way to a single address; no route of the container's own stays there."""
    single = {"address": "10.9.0.5/32", "gateway": "10.9.0.1"}
    config = machine.network(ipam={"type": "static", "addresses": [single]})

    machine.ok("bridge", "ADD", config, container := machine.container())
    machine.ok("bridge", "DEL", config, container)

    assert told(machine, f"network {machine.name}", "10.9.0.5 nowhere", "prefix length")
    assert machine.command(machine.host, "ip", "route", "show", "10.9.0.5") == ""


def test_masquerading_without_the_gateway(machine: Machine) -> None:
    """Packets for ipMasq never come to a host that is not the gateway."""
    config = machine.network(isGateway=False, ipMasq=True)

    machine.ok("bridge", "ADD", config, machine.container())

    assert told(machine, "'br0' does not have gateway 10.9.0.1", '"isGateway"')
    machine.log.clear()
    machine.do(machine.host, "ip addr add 10.9.0.1/24 dev br0")
    machine.ok("bridge", "ADD", config, machine.container(), containerid="c2")
    assert machine.log == []


@pytest.mark.parametrize(
    "entry",
    [{"name": "eth0"}, {"name": "veth1"}, {"name": "eth1", "sandbox": "/run/netns/x"}],
    ids=["no-sandbox", "host-end", "other"],
)
def test_host_ports_without_an_address(machine: Machine, entry: Json) -> None:
    """A result whose addresses are not the container's gives host ports no target."""
    result = {"interfaces": [entry], "ips": [{"address": "10.9.0.2/24", "interface": 0}]}
    ports = [{"hostPort": 8000 + number, "containerPort": 80} for number in range(20)]
    config = machine.network(
        type="portmap",
        prevResult={"cniVersion": "1.1.0", **result},
        runtimeConfig={"portMappings": ports},
    )

    machine.ok("portmap", "ADD", config, machine.container())

    (line,) = told(machine, f"network {machine.name}", "8000/tcp", "sandbox")
    assert "8007/tcp and 12 more leads nowhere" in line


def test_host_ports_of_the_other_family(machine: Machine) -> None:
    """A port at an IPv6 address of the node needs one of the container."""
    container = machine.container()
    result = machine.ok("bridge", "ADD", machine.network(), container)
    ports = [
        {"hostPort": 80, "containerPort": 80},
        {"hostPort": 81, "containerPort": 80, "hostIP": "::1"},
    ]
    config = machine.network(
        type="portmap", prevResult=result, runtimeConfig={"portMappings": ports}
    )

    machine.ok("portmap", "ADD", config, container)

    assert told(machine, "host port [::1]:81/tcp leads nowhere")


def test_an_mtu_at_one_end(machine: Machine) -> None:
    """A veth drops what is longer than the MTU of its other end."""
    container = machine.container()
    result = machine.ok("bridge", "ADD", machine.network(), container)
    config = machine.network(type="tuning", prevResult=result, mtu=1400)

    machine.ok("tuning", "ADD", config, container)

    (port,) = machine.ports()
    assert told(machine, f"network {machine.name}", "MTU 1400", f"'{port}' has 1500")


def test_a_gateway_that_the_runtimes_address_replaces(machine: Machine) -> None:
    """args.cni.ips replaces the addresses of the configuration, and their gateways with them."""
    config = machine.network(
        isGateway=False,
        args={"cni": {"ips": ["10.10.5.29/24"]}},
        ipam={
            "type": "static",
            "addresses": [{"address": "10.10.5.99/24", "gateway": "10.10.5.1"}],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    )

    machine.ok("bridge", "ADD", config, machine.container())

    assert told(machine, f"network {machine.name}", "gateway 10.10.5.1", "GATEWAY")
    machine.log.clear()
    machine.ok(
        "bridge", "ADD", config, machine.container(), containerid="c2", args="GATEWAY=10.10.5.1"
    )
    assert machine.log == []


# --- what can never work is refused ----------------------------------------------------------


@pytest.mark.parametrize(
    ("ranges", "routes", "said"),
    [
        (
            [{**V6, "gateway": "2001:db8:5::1"}],
            [{"dst": "::/0"}],
            "2001:db8:5::1 of the route to ::",
        ),
        (
            [{"subnet": "10.9.0.0/24"}],
            [{"dst": "0.0.0.0/0"}, {"dst": "10.97.2.0/23", "gw": "192.168.35.11"}],
            "192.168.35.11 of the route to 10.97.2.0/23",
        ),
    ],
    ids=["of-the-range", "of-a-route"],
)
def test_a_gateway_out_of_reach(
    machine: Machine, ranges: list[Json], routes: list[Json], said: str
) -> None:
    """A gateway in none of the container's subnets is refused with the reason and a way out."""
    config = machine.network(ipam=ipam(machine, *ranges, routes=routes))
    container = machine.container()

    error = machine.refused("bridge", "ADD", config, container)

    assert error["code"] == 7
    assert f"'eth0' cannot reach gateway {said}" in error["msg"]
    assert "add a route to the gateway itself" in error["msg"]
    assert machine.link(container, "eth0") is None
    assert machine.leases() == []


def test_a_gateway_out_of_reach_with_a_route_to_it(machine: Machine) -> None:
    """A route to the gateway itself makes it reachable, wherever in the list it is."""
    routes = [{"dst": "::/0"}, {"dst": "2001:db8:5::1/128", "gw": "::"}]
    config = machine.network(
        isGateway=False, ipam=ipam(machine, {**V6, "gateway": "2001:db8:5::1"}, routes=routes)
    )
    container = machine.container()

    result = machine.ok("bridge", "ADD", config, container)

    assert result["routes"] == [{"dst": "::/0"}, {"dst": "2001:db8:5::1/128", "gw": "::"}]
    defaults = [
        one["gateway"] for one in machine.ip(container, "-6", "route") if one["dst"] == "default"
    ]
    assert defaults == ["2001:db8:5::1"]
    machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)


def test_a_link_local_gateway_is_in_reach(machine: Machine) -> None:
    """fe80::1, as providers have it, is on every link, and the host knows the way back."""
    container, outside = machine.container(), machine.outside()
    machine.do(outside, "ip -6 route add default via 2001:db8::1")
    config = machine.network(
        ipam=ipam(machine, {**V6, "gateway": "fe80::1"}, routes=[{"dst": "::/0"}])
    )

    machine.ok("bridge", "ADD", config, container)

    assert machine.ping(container, "fe80::1%eth0")
    assert machine.ping(container, "2001:db8::2")
    assert machine.log == [line for line in machine.log if "is outside of subnet" in line]
    machine.ok("bridge", "ADD", config, machine.container(), containerid="c2")


@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
def test_ipv6_that_is_switched_off_on_the_host(machine: Machine, plugin: str) -> None:
    """The kernel names neither interface nor sysctl; the message does."""
    machine.command(
        machine.host, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6"
    )
    config = machine.network(type=plugin, ipam=ipam(machine, V6))

    error = machine.refused(plugin, "ADD", config, machine.container())

    (name,) = [word for word in error["msg"].split("'") if word.startswith(("br0", "veth"))]
    assert f"set sysctl net/ipv6/conf/{name}/disable_ipv6 to 0" in error["msg"]


# --- several routes to one destination -------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "routes"),
    [
        (
            {"address": "fd00::2/64", "gateway": "fd00::1"},
            [{"dst": "2001:db8::/32", "gw": "fd00::1"}, {"dst": "2001:db8::/32", "gw": "fd00::9"}],
        ),
        (
            {"address": "10.9.0.2/24", "gateway": "10.9.0.1"},
            [
                {"dst": "10.7.0.0/16", "gw": "10.9.0.1", "priority": 10},
                {"dst": "10.7.0.0/16", "gw": "10.9.0.9", "priority": 20},
            ],
        ),
    ],
    ids=["ipv6", "ipv4"],
)
def test_two_routes_to_one_destination(machine: Machine, address: Json, routes: list[Json]) -> None:
    """CHECK finds both: the kernel lists those of IPv6 as one with two next hops."""
    container = machine.container()
    config = machine.network(ipam={"type": "static", "addresses": [address], "routes": routes})
    result = machine.ok("bridge", "ADD", config, container)

    machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)

    family = "-6" if ":" in address["address"] else "-4"
    words = f"ip {family} route del {routes[1]['dst']} via {routes[1]['gw']}"
    machine.command(container, *words.split())
    error = machine.refused("bridge", "CHECK", {**config, "prevResult": result}, container)
    assert f"route to {routes[1]['dst']} via {routes[1]['gw']}" in error["msg"]
