"""What others take away from pods, put back by the agent when the kernel tells of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest

from agent.cluster import Cluster, Member
from agent.network.fabric import Applied, Fabric
from agent.network.settings import DIRECT, Settings
from agent.network.watched import PODS
from tests.machine import Machine
from tests.resident import visiting
from tests.sockets import asks, serving
from tests.waits import wait_until

OWN = Member(
    "a",
    "uid-a",
    (ipaddress.ip_address("192.0.2.1"),),
    (ipaddress.ip_network("10.9.0.0/24"),),
)


class Host:
    """A node with an uplink, a pod, and an agent."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.outside = machine.outside()
        settings = Settings(DIRECT, state_dir=machine.state_dir, pods_state_dir=machine.state_dir)
        self.fabric = Fabric(settings, machine.log.append)

    def apply(self) -> Applied:
        """Apply a cluster of this node alone."""
        with visiting(self.machine.host):
            return self.fabric.apply(Cluster(OWN))

    def add_pod(self, *, firewall: bool = False) -> str:
        """Attach a pod with a host port; return its namespace."""
        machine, netns = self.machine, self.machine.container()
        first = machine.network(type="ptp", bridge=None, isGateway=None)
        ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
        second: dict[str, Any] = {
            "cniVersion": "1.1.0",
            "name": machine.name,
            "type": "portmap",
            "capabilities": {"portMappings": True},
            "runtimeConfig": {"portMappings": ports},
            "prevResult": machine.ok("ptp", "ADD", first, netns),
        }
        result = machine.ok("portmap", "ADD", second, netns)
        if firewall:
            third = {key: second[key] for key in ("cniVersion", "name")}
            machine.ok(
                "firewall", "ADD", {**third, "type": "firewall", "prevResult": result}, netns
            )
        return netns

    def reaches(self, pod: str) -> bool:
        """Tell whether the host port leads from outside to the pod."""
        with serving(pod, "tcp", 80, ["0.0.0.0"]) as (server,):
            return bool(asks(self.outside, server, "192.0.2.1", 8080))


@pytest.fixture
def host(machine: Machine) -> Iterator[Host]:
    """A node."""
    made = Host(machine)
    yield made
    made.fabric.close()


def test_a_flush_of_the_rules(host: Host) -> None:
    """Host port and masquerading are back after one wake-up."""
    host.apply()
    pod = host.add_pod()
    before = host.machine.snapshot()
    reasons: list[str] = []

    with visiting(host.machine.host):
        listener = host.fabric.listen(reasons.append)
    host.machine.command(host.machine.host, "nft", "flush", "ruleset")
    wait_until(lambda: PODS in reasons, "no event of the flush")
    assert not host.reaches(pod)
    applied = host.apply()
    assert applied.problems == ()
    assert applied.repaired > 0
    assert host.apply().repaired == 0
    listener.close()

    assert host.machine.snapshot() == before
    assert host.reaches(pod)


def test_a_flush_while_the_agent_is_away(host: Host) -> None:
    """The first application looks at all pods, a later one at none without an event."""
    pod = host.add_pod()
    host.machine.command(host.machine.host, "nft", "flush", "ruleset")

    host.apply()
    back = host.reaches(pod)
    host.machine.command(host.machine.host, "nft", "flush", "ruleset")
    host.apply()

    assert back
    assert not host.reaches(pod)


def test_what_stays_broken(host: Host) -> None:
    """A pod that has lost its interface is named with it, until it is gone."""
    pod = host.add_pod()
    host.machine.command(pod, "ip", "link", "delete", "eth0")

    applied = host.apply()
    (words,) = host.fabric.broken.values()

    assert applied.problems == ()
    assert words.startswith("gone, and only a new pod has it again: veth 'veth")


def test_what_a_pod_does_to_itself(host: Host) -> None:
    """That is its own business: nothing is said of it."""
    pod = host.add_pod()
    host.machine.command(pod, "ip", "link", "set", "eth0", "mtu", "1400")
    host.machine.command(pod, "ip", "address", "flush", "dev", "eth0")

    assert host.apply().problems == ()
    assert host.fabric.broken == {}
