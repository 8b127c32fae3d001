"""`pycni audit`, `explain` and `reclaim` of firewall's rules."""

from __future__ import annotations

import pytest

from commands import DONE, FOUND
from tests.kernel.test_commands import NOTHING, age, alone, asked, kinds
from tests.kernel.walls import Walls
from tests.machine import Json, Machine
from tests.waits import wait_until

pytestmark = [alone, pytest.mark.timeout(300)]


@pytest.fixture
def walls(machine: Machine) -> Walls:
    """Give a node."""
    return Walls(machine)


def found(walls: Walls, *words: str, status: int = FOUND, key: str = "findings") -> list[Json]:
    """Return what a command says about firewalls and records."""
    listed: list[Json] = asked(walls.machine, *words, status=status)[key]
    return [one for one in listed if one["kind"] == "firewall"]


def end(walls: Walls, containerid: str) -> None:
    """End a container's namespace, and wait until its veth is gone."""
    ports = len(walls.machine.ports())
    walls.machine.forget(walls.netns[containerid])
    wait_until(lambda: len(walls.machine.ports()) != ports, "the kernel keeps the veth")


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_reclaim(walls: Walls, backend: str) -> None:
    """The rules of a dead container are shown, and go at the second call."""
    keys: Json = {"backend": backend, "ingressPolicy": "isolated"}
    walls.admitted("dead", "alive", **keys)
    with walls.machine.process_in(walls.netns["alive"]):
        end(walls, "dead")
        age(walls.machine)

        findings = found(walls, "audit")
        asked(walls.machine, "reclaim", status=FOUND)
        age(walls.machine)
        asked(walls.machine, "reclaim", status=DONE)

        assert {one["containerid"] for one in findings} == {"dead"}
        assert any("rules of 10.9.0." in one["what"] for one in findings)
        assert asked(walls.machine, "audit") == NOTHING
        walls.ok("CHECK", "alive", **keys)
        assert len(walls.rules()) == 3
        assert len(walls.records()) == 1


def test_without_records(walls: Walls) -> None:
    """Rules and policies that nobody has a record of are seen twice, then go."""
    walls.admitted("dead", ingressPolicy="isolated")
    netns, address = walls.netns["dead"], walls.address(4, "dead")
    for path in walls.records():
        path.unlink()

    with walls.machine.process_in(netns):
        in_use = [one["what"] for one in found(walls, "audit")]
    end(walls, "dead")
    asked(walls.machine, "reclaim", status=FOUND)
    age(walls.machine)
    asked(walls.machine, "reclaim", status=FOUND)
    age(walls.machine)
    asked(walls.machine, "reclaim", status=DONE)

    assert [what for what in in_use if address in what] == []
    assert len(in_use) == 2  # the policy of the bridge, and of the port
    assert (walls.rules(), walls.rules(6), walls.own()) == ([], [], [])


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_explain(walls: Walls, backend: str) -> None:
    """explain lists rules, policy and port, and says what is missing."""
    walls.admitted("c1", backend=backend, ingressPolicy="isolated")
    walls.shell("ip6tables -F CNI-FORWARD")

    (attachment,) = asked(walls.machine, "explain", "c1", status=FOUND)["attachments"]

    states = {
        one["what"]: one["present"] for one in attachment["objects"] if one["kind"] == "firewall"
    }
    missing = [what for what, present in states.items() if not present]
    assert len(states) == {"nftables": 4, "iptables": 3}[backend]
    assert [what.split()[2] for what in missing] == [walls.address(6)]
    assert "firewall" in kinds(attachment["objects"])
