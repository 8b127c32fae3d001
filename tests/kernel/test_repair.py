"""What others take away from living containers, and how it is put back from the records."""

from __future__ import annotations

from typing import Any

import pytest

from commands.repair import put_back
from tests.machine import Machine

Json = dict[str, Any]


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


LINES = (
    "nft flush ruleset",
    "nft flush chain inet pycni hostports",
    "nft flush chain inet pycni postrouting",
    "nft delete table inet pycni",
    "ip route del 10.9.0.2",
    "ip addr del 10.9.0.1 dev {veth}",
    "tc qdisc del dev {veth} root",
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
