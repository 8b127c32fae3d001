"""Objects that others take away from living containers are put back from the records."""

from __future__ import annotations

import re

import pytest

from commands.missing import Missing
from commands.repair import put_back
from tests.machine import Json, Machine
from tests.snapshot import changes


def chain(machine: Machine, netns: str) -> None:
    """Attach a container by ptp, portmap and bandwidth."""
    first: Json = {**machine.network(type="ptp", ipMasq=True, bridge=None, isGateway=None)}
    result = machine.ok("ptp", "ADD", first, netns)
    ports: list[Json] = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    for port in range(9000, 9020):
        ports.append({"hostPort": port, "containerPort": port, "protocol": "udp"})
    common = {"cniVersion": "1.1.0", "name": machine.name}
    second: Json = {**common, "type": "portmap", "prevResult": result}
    second |= {"capabilities": {"portMappings": True}, "runtimeConfig": {"portMappings": ports}}
    result = machine.ok("portmap", "ADD", second, netns)
    third: Json = {**common, "type": "bandwidth", "prevResult": result}
    third |= {"ingressRate": 8_000_000, "ingressBurst": 800_000}
    machine.ok("bandwidth", "ADD", third, netns)


def veth_of(machine: Machine) -> str:
    """Return the host's end of the only container."""
    (name,) = machine.ports()
    return name


def bridged(machine: Machine, netns: str, *, backend: str = "nftables") -> None:
    """Attach a container by bridge, firewall, portmap, tuning and bandwidth."""
    keys: Json = {"ipMasq": True, "ipMasqBackend": backend, "hairpinMode": True}
    common = {"cniVersion": "1.1.0", "name": machine.name}
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    chain: list[Json] = [
        {**machine.network(**keys, macspoofchk=True)},
        {"type": "firewall", "backend": backend, "ingressPolicy": "same-bridge"},
        {
            "type": "portmap",
            "backend": backend,
            "capabilities": {"portMappings": True},
            "runtimeConfig": {"portMappings": ports},
        },
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "321"}, "mtu": 1400},
        {"type": "bandwidth", "egressRate": 8_000_000, "egressBurst": 800_000},
    ]
    result: Json | None = None
    for one in chain:
        config = {**common, **one, **({"prevResult": result} if result else {})}
        result = machine.ok(one["type"], "ADD", config, netns)


def everything(machine: Machine, netns: str) -> Json:
    """Return all that can be lost, without counters and indices."""
    veth = veth_of(machine)
    queues = machine.command(machine.host, "tc", "qdisc", "show")
    found: Json = {
        **machine.snapshot(netns),
        "queues": sorted(line for line in queues.splitlines() if "noqueue" not in line),
        "port": machine.command(machine.host, "bridge", "-d", "link", "show", "dev", veth),
        "sysctl": machine.command(netns, "sysctl", "net.core.somaxconn"),
    }
    # The record of firewall has the handles of its rules, which are others now.
    found["files"] = {name: text for name, text in found["files"].items() if "firewall" not in name}
    found["nft"] = [re.sub(r'"(bytes|packets)": \d+', "", one) for one in found["nft"]]
    for kind in ("links", "addresses"):
        lines = found[machine.host][kind]
        found[machine.host][kind] = [re.sub(r'"ifindex": \d+', "", one) for one in lines]
    return found


LINES = (
    "nft flush ruleset",
    "nft flush chain inet pycni hostports",
    "nft flush chain inet pycni postrouting",
    "nft delete table inet pycni",
    "ip route del 10.9.0.2",
    "ip addr del 10.9.0.1 dev {veth}",
    "tc qdisc del dev {veth} root",
    "ip link set {veth} down",
    "sysctl -qw net.ipv4.ip_forward=0",
    "sysctl -qw net.ipv4.conf.{veth}.route_localnet=0",
)


@pytest.mark.parametrize("line", LINES)
def test_put_back(machine: Machine, line: str) -> None:
    """All is as before, and a second call finds nothing to do."""
    chain(machine, machine.container())
    veth = veth_of(machine)
    before = machine.snapshot(), machine.command(machine.host, "tc", "qdisc", "show", "dev", veth)

    machine.command(machine.host, *line.format(veth=veth).split())
    with machine.make_host() as host:
        first = put_back(host, machine.data_dir)
    with machine.make_host() as host:
        second = put_back(host, machine.data_dir)

    after = machine.snapshot(), machine.command(machine.host, "tc", "qdisc", "show", "dev", veth)
    assert after == before
    assert first != []
    assert second == []


BRIDGED = (
    "nft flush ruleset",
    "nft delete table inet pycni",
    "nft delete table bridge pycni",
    "nft flush chain bridge pycni prerouting",
    "nft flush set bridge pycni guarded_ports",
    "nft flush chain inet pycni isolation",
    "nft flush set inet pycni isolated_bridges",
    "nft flush chain ip filter CNI-FORWARD",
    "nft flush chain ip filter FORWARD",
    "ip link set {veth} nomaster",
    "ip link set {veth} down",
    "bridge link set dev {veth} hairpin off",
    "ip link set br0 down",
    "ip addr del 10.9.0.1/24 dev br0",
    "sysctl -qw net.ipv4.ip_forward=0",
    "tc qdisc del dev {veth} ingress",
    "tc qdisc del dev {ifb} root",
    "ip link del {ifb}",
)
BY_IPTABLES = (
    "nft flush ruleset",
    "nft flush table ip nat",
    "nft flush table ip filter",
    "iptables -t nat -F POSTROUTING",
    "iptables -t nat -F PREROUTING",
    "iptables -t nat -F CNI-HOSTPORT-DNAT",
    "iptables -F FORWARD",
    "iptables -F CNI-ISOLATION-STAGE-1",
)
INSIDE = (
    "sysctl -qw net.core.somaxconn=128",
    "ip link set eth0 mtu 1300",
    "ip route flush exact default",
    "ip addr flush dev eth0 scope global",
)


def lose_and_put_back(machine: Machine, netns: str, where: str, line: str) -> None:
    """All is as before a line was run, and a second call finds nothing to do."""
    before = everything(machine, netns)
    links = machine.ip(machine.host, "link")
    ifb = next((one["ifname"] for one in links if one["ifname"].startswith("bwp")), "")

    machine.command(where, *line.format(veth=veth_of(machine), ifb=ifb).split())
    with machine.make_host() as host:
        first = put_back(host, machine.data_dir)
    with machine.make_host() as host:
        second = put_back(host, machine.data_dir)

    after = everything(machine, netns)
    assert changes(before, after) == []
    assert first != []
    assert second == []


@pytest.mark.parametrize("line", BRIDGED)
def test_of_a_bridge(machine: Machine, line: str) -> None:
    """Port, gateway, filters and limits come back."""
    netns = machine.container()
    bridged(machine, netns)

    lose_and_put_back(machine, netns, machine.host, line)


@pytest.mark.parametrize("line", BY_IPTABLES)
def test_of_iptables(machine: Machine, line: str) -> None:
    """Chains and rules of iptables come back."""
    netns = machine.container()
    bridged(machine, netns, backend="iptables")

    lose_and_put_back(machine, netns, machine.host, line)


@pytest.mark.parametrize("line", INSIDE)
def test_in_the_container(machine: Machine, line: str) -> None:
    """Settings of tuning, addresses and routes come back, unless containers are left alone."""
    netns = machine.container()
    bridged(machine, netns)
    before = everything(machine, netns)
    machine.command(netns, *line.split())
    changed = everything(machine, netns)
    assert changed != before

    with machine.make_host() as host:
        assert put_back(host, machine.data_dir, inside=False) == []
    assert everything(machine, netns) == changed
    machine.command(netns, *line.split())
    with machine.make_host() as host:
        assert put_back(host, machine.data_dir) != []

    assert everything(machine, netns) == before


def test_the_containers_end_is_down(machine: Machine) -> None:
    """It is set up again with its routes; a route that a person adds by hand does not hinder."""
    netns = machine.container()
    bridged(machine, netns)
    machine.do(netns, "ip link set eth0 down")
    assert not machine.ping(netns, "10.9.0.1")

    with machine.make_host() as host:
        put_back(host, machine.data_dir)

    assert machine.ping(netns, "10.9.0.1")
    assert "default" in [one["dst"] for one in machine.ip(netns, "route")]


def test_only_by_add(machine: Machine) -> None:
    """In the container of a ptp, or without the interface, addresses are lost by name."""
    first: Json = machine.network(type="ptp", bridge=None, isGateway=None)
    bridge = machine.network(name=f"{machine.name}-2", bridge="br1")
    netns, other = machine.container(), machine.container()
    machine.ok("ptp", "ADD", first, netns)
    machine.ok("bridge", "ADD", bridge, other, containerid="c2")
    machine.do(netns, "ip addr flush dev eth0 scope global")
    machine.do(other, "ip link del eth0")
    lost: list[Missing] = []

    with machine.make_host() as host:
        put_back(host, machine.data_dir, tell_lost=lost.append)

    assert {(one.containerid, one.kind) for one in lost} >= {
        *(("c1", "address"), ("c1", "route")),
        *(("c2", "address"), ("c2", "route"), ("c2", "veth")),
    }


def test_a_bridge_that_is_gone(machine: Machine) -> None:
    """It is made again with its gateway, and its containers are plugged in."""
    containers = [machine.container() for _ in range(2)]
    for number, netns in enumerate(containers):
        machine.ok("bridge", "ADD", machine.network(), netns, containerid=f"c{number}")
    machine.command(machine.host, "ip", "link", "del", "br0")

    with machine.make_host() as host:
        put_back(host, machine.data_dir)

    assert machine.addresses(machine.host, "br0") == ["10.9.0.1/24"]
    ports = [machine.link(machine.host, name) for name in machine.ports()]
    assert [one["master"] for one in ports if one] == ["br0", "br0"]
    for netns in containers:
        machine.do(netns, "ip neigh flush all")
        assert machine.ping(netns, "10.9.0.1")


def test_the_route_to_the_containers(machine: Machine) -> None:
    """It comes back with the gateway as its source, and goes with that."""
    machine.ok("bridge", "ADD", machine.network(), machine.container())
    machine.do(machine.host, "ip route del 10.9.0.0/24")

    with machine.make_host() as host:
        (found,) = put_back(host, machine.data_dir)
        assert found.what == "to 10.9.0.0/24 over 'br0' of the host"
    with machine.make_host() as host:
        assert put_back(host, machine.data_dir) == []

    (route,) = machine.ip(machine.host, "route")
    assert (route["dst"], route["dev"], route["prefsrc"]) == ("10.9.0.0/24", "br0", "10.9.0.1")
    machine.do(machine.host, "ip addr del 10.9.0.1/24 dev br0")
    assert machine.ip(machine.host, "route") == []


def test_what_only_an_add_can(machine: Machine) -> None:
    """A pair that is gone stays gone, and is told apart."""
    chain(machine, machine.container())
    machine.command(machine.host, "ip", "link", "del", veth_of(machine))

    lost: list[Missing] = []
    with machine.make_host() as host:
        put_back(host, machine.data_dir, tell_lost=lost.append)
    with machine.make_host() as host:
        assert put_back(host, machine.data_dir) == []

    assert machine.ports() == []
    assert "veth" in {one.kind for one in lost}


def test_what_is_whole_is_left_alone(machine: Machine) -> None:
    """Nothing is sent for it."""
    chain(machine, machine.container())
    before = machine.snapshot()

    with machine.make_host() as host:
        assert put_back(host, machine.data_dir) == []

    assert machine.snapshot() == before


def test_a_dead_container_gets_nothing(machine: Machine) -> None:
    """Its ports may be another's by now."""
    netns = machine.container()
    chain(machine, netns)
    machine.end(netns)
    machine.command(machine.host, "nft", "flush", "ruleset")

    with machine.make_host() as host:
        assert put_back(host, machine.data_dir) == []

    assert machine.nft() == []


def test_one_that_cannot_be_restored_keeps_no_other(machine: Machine) -> None:
    """A foreign route is in the way of one container; the other gets its own."""
    one, two = machine.container(), machine.container()
    config: Json = {**machine.network(type="ptp", bridge=None, isGateway=None)}
    for number, netns in enumerate((one, two), 1):
        machine.ok("ptp", "ADD", config, netns, containerid=f"c{number}")
    machine.do(machine.host, "ip link add other type veth", "ip link set other up")
    for number in (2, 3):
        machine.command(machine.host, "ip", "route", "del", f"10.9.0.{number}")
    machine.do(machine.host, "ip route add 10.9.0.2 dev other")

    with machine.make_host() as host, pytest.raises(ExceptionGroup):
        put_back(host, machine.data_dir)

    routes = {one["dst"]: one["dev"] for one in machine.ip(machine.host, "route")}
    assert routes["10.9.0.2"] == "other"
    assert routes["10.9.0.3"] != "other"
