"""`pycni audit`, `reclaim` and `explain` on what portmap, ptp and tuning have made."""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest

from commands import DONE, FOUND
from tests.kernel.points import network as ptp_network
from tests.kernel.ports import port
from tests.kernel.test_commands import age, asked, config, end, kept, kinds, pycni, records
from tests.machine import Json, Machine, files_below

pytestmark = [
    pytest.mark.without_engine("the commands know nothing of it"),
    pytest.mark.timeout(300),
]
BACKENDS = pytest.mark.parametrize("backend", ["nftables", "iptables"])


def chained(machine: Machine, kind: str, result: Json, **keys: Any) -> Json:
    """Return the configuration of a plugin behind the one that gave `result`."""
    return {
        "cniVersion": "1.1.0",
        "name": machine.name,
        "type": kind,
        "prevResult": result,
        **keys,
    }


@cache
def bridge_of(machine: Machine) -> Json:
    """Return a bridge whose subnet no other test has."""
    return config(machine, macspoofchk=False, ipMasq=False)


class Attached:
    """A container whose chain ends in portmap or tuning."""

    def __init__(self, machine: Machine, containerid: str, kind: str, **keys: Any) -> None:
        self.netns, self._machine = machine.container(), machine
        self.ports = machine.ports()
        conf = bridge_of(machine)
        self.result = machine.ok("bridge", "ADD", conf, self.netns, containerid=containerid)
        chain = chained(machine, kind, self.result, **keys)
        machine.ok(kind, "ADD", chain, self.netns, containerid=containerid)

    def end(self) -> None:
        """End its namespace."""
        end(self._machine, self.netns, self.ports)


def with_ports(
    machine: Machine, containerid: str, backend: str, first: int = 8080, **keys: Any
) -> Attached:
    """Return a container with two host ports."""
    mappings = {"portMappings": [port(first), port(first + 1, 53, "udp")]}
    capabilities = {"portMappings": True}
    return Attached(
        machine,
        containerid,
        "portmap",
        backend=backend,
        runtimeConfig=mappings,
        capabilities=capabilities,
        **keys,
    )


def ruleset(machine: Machine) -> list[str]:
    """Return what there is of host ports, and of all else in nftables, iptables' included.

    Counters of rules are left out.
    """
    return sorted(re.sub(r"'counter': \{[^}]*\}", "'counter'", str(one)) for one in machine.nft())


def reclaimed(machine: Machine) -> list[str]:
    """Return the kinds of what a second call removes; the first removes nothing."""
    assert asked(machine, "reclaim", status=FOUND)["removed"] == []
    age(machine)
    return kinds(asked(machine, "reclaim")["removed"])


@BACKENDS
def test_ports_of_the_dead(machine: Machine, backend: str) -> None:
    """Mappings of a container that is gone are shown and go with its record; others stay."""
    with ExitStack() as stack:
        alive = with_ports(machine, "alive", backend)
        stack.enter_context(machine.process_in(alive.netns))
        before = ruleset(machine)
        gone = with_ports(machine, "dead", backend, first=9090)
        gone.end()
        age(machine)

        found = asked(machine, "audit", status=FOUND)["findings"]
        ports = ["host-port"] * 3 if backend == "nftables" else ["iptables"]
        assert kinds(found) == sorted([*ports, "lease", "record", "record"])
        assert {one["containerid"] for one in found} == {"dead"}
        assert reclaimed(machine) == kinds(found)
        assert ruleset(machine) == before


@BACKENDS
def test_ports_without_a_record(machine: Machine, backend: str) -> None:
    """Mappings that no record tells of go after two sightings, unless their address is in use."""
    with ExitStack() as stack:
        alive = with_ports(machine, "alive", backend)
        stack.enter_context(machine.process_in(alive.netns))
        before = ruleset(machine)
        with_ports(machine, "dead", backend, first=9090).end()
        for path in records(machine):
            path.unlink()
        age(machine)

        found = asked(machine, "audit", status=FOUND)["findings"]
        kind = "host-port" if backend == "nftables" else "iptables"
        assert [o["containerid"] for o in found if o["kind"] == kind] == ["dead"]
        assert reclaimed(machine) == [kind]
        assert ruleset(machine) == before


@pytest.mark.parametrize("keys", [{}, {"conditionsV4": ["ip", "ttl", "64"]}])
def test_the_last_ports_go_with_all(machine: Machine, keys: Json) -> None:
    """When the last element goes that nobody has a record of, so does what all share."""
    with_ports(machine, "dead", "nftables", **keys).end()
    for path in records(machine):
        path.unlink()
    age(machine)

    assert reclaimed(machine) == ["host-port"]
    assert not [line for line in ruleset(machine) if "hostport" in line and "hairpin-" not in line]


def test_explain_ports(machine: Machine) -> None:
    """Each element by the port it is for, present or missing; with iptables, the chain."""
    with_ports(machine, "c1", "nftables")
    with_ports(machine, "c2", "iptables", first=9090)

    (one,) = asked(machine, "explain", "c1")["attachments"]
    objects = [o for o in one["objects"] if o["kind"] == "host-port"]
    assert [o["present"] for o in objects] == [True] * 3
    assert "host port 8080/tcp" in objects[0]["what"]
    assert "host port 8081/udp" in objects[1]["what"]
    machine.do(machine.host, "nft flush map inet pycni hostports4")
    (one,) = asked(machine, "explain", "c1", status=FOUND)["attachments"]
    assert [o["present"] for o in one["objects"] if o["kind"] == "host-port"] == [
        *(False, False, True)
    ]
    (two,) = asked(machine, "explain", "c2")["attachments"]
    assert ("iptables", True) in [(o["kind"], o["present"]) for o in two["objects"]]


def test_ptp(machine: Machine) -> None:
    """The pair and the masquerading of a ptp are explained; a dead one's go, a living one's not."""
    (((subnet,),)) = config(machine)["ipam"]["ranges"]
    config_of = ptp_network(machine, subnet["subnet"], ipMasq=True)
    with ExitStack() as stack:
        alive = machine.container()
        stack.enter_context(machine.process_in(alive))
        machine.ok("ptp", "ADD", config_of, alive, containerid="alive")
        before = kept(machine)
        container, ports = machine.container(), machine.ports()
        machine.ok("ptp", "ADD", config_of, container, containerid="dead")
        (one,) = asked(machine, "explain", "dead")["attachments"]
        assert [(o["kind"], o["present"]) for o in one["objects"]] == [
            *(("veth", True), ("mac", True), ("mtu", True), ("address", True), ("route", True)),
            *(("gateway", True), ("route", True), ("masquerade", True)),
        ]
        end(machine, container, ports)
        age(machine)

        found = asked(machine, "audit", status=FOUND)["findings"]
        assert kinds(found) == ["lease", "masquerade", "record"]
        assert reclaimed(machine) == kinds(found)
        assert kept(machine) == before


def test_tuning(machine: Machine) -> None:
    """The record of tuning and the reference's file beside it are shown, and go."""
    data_dir = f"{machine.data_dir}-tuning"
    keys = {"dataDir": data_dir, "mtu": 1400, "sysctl": {"net.core.somaxconn": "77"}}
    gone = Attached(machine, "dead", "tuning", **keys)
    (one,) = asked(machine, "explain", "dead")["attachments"]
    objects = [(o["kind"], o["present"]) for o in one["objects"]]
    assert {("backup", True), ("mtu", True), ("sysctl", True)} <= set(objects)
    assert all(present for _, present in objects)
    gone.end()
    age(machine)

    found = asked(machine, "audit", status=FOUND)["findings"]
    assert kinds(found) == ["backup", "lease", "record", "record"]
    assert reclaimed(machine) == kinds(found)
    assert files_below(data_dir) == {}
    assert pycni(machine, "audit").returncode == DONE
