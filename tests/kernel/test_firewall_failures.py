"""firewall: failures, kills and calls at once leave nothing, and harm no other container."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.faults.inprocess import INJECTED, KILLED, Fault, Terminated, faulty
from tests.kernel.sweeps import faults, rehearsal
from tests.kernel.walls import Walls
from tests.machine import Json, Machine, error_of

pytestmark = pytest.mark.timeout(300)  # many calls and connections each
alone = pytest.mark.without_engine(reason="fails in this process")
LIMIT = 300  # operations: more than any ADD or DEL here has
CLIENTS = 4  # each waits for the others: an engine would send more to one-shot processes
CASES: Mapping[str, Json] = {
    "open": {"backend": "nftables"},
    "isolated": {"backend": "nftables", "ingressPolicy": "isolated"},
    "iptables": {"backend": "iptables", "ingressPolicy": "isolated"},
    "choose": {"ingressPolicy": "same-bridge"},
}
TOLERATED = r"open namespace"


@pytest.fixture
def walls(machine: Machine) -> Walls:
    """Give a node whose containers need rules."""
    walls = Walls(machine)
    walls.shell("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
    return walls


def state(walls: Walls) -> Json:
    """Return all that firewall changes."""
    return {
        "own": walls.own(),
        "iptables": [walls.saved(version) for version in (4, 6)],
        "records": sorted(path.read_text() for path in walls.records()),
    }


def arrange(walls: Walls, keys: Json) -> Json:
    """Let one container through, and attach one that is to be; return its configuration."""
    walls.admitted("other", **keys)
    walls.admitted("far", bridge=1, **keys)
    walls.attach()
    return walls.config(**keys)


@alone
@pytest.mark.rotating(2)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("first", [False, True], ids=["second", "first"])
def test_any_failure_of_an_add_is_taken_back(walls: Walls, name: str, *, first: bool) -> None:
    """If any operation fails, ADD says so, all is as it was, and the next ADD succeeds."""
    keys = CASES[name]
    if first:
        walls.attach()
        config = walls.config(**keys)
    else:
        config = arrange(walls, keys)
    before, failed = state(walls), 0

    # The rehearsal of the first would leave what no container of the node has any more.
    faults_of = (
        (Fault(number) for number in range(1, LIMIT))
        if first
        else faults(rehearsal(walls.machine, "firewall", "ADD", config, walls.netns["c1"]))
    )
    for fault in faults_of:
        with faulty(walls.machine, fault) as host:
            reply = walls.machine.invoke("firewall", "ADD", config, walls.netns["c1"], host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
            assert state(walls) == before, fault.what
        else:
            assert re.fullmatch(TOLERATED, fault.what), fault.what
            walls.ok("DEL", **keys)

    assert failed > 4
    assert not fault.happened
    walls.ok("CHECK", **keys)


@alone
@pytest.mark.rotating(2)
@pytest.mark.parametrize("name", CASES)
def test_host_that_fails_for_good(walls: Walls, name: str) -> None:
    """When nothing works any more, not even the way back, a later DEL removes what is left."""
    config = arrange(walls, CASES[name])
    before = state(walls)

    for fault in faults(
        rehearsal(walls.machine, "firewall", "ADD", config, walls.netns["c1"]), lasting=True
    ):
        with faulty(walls.machine, fault) as host:
            walls.machine.invoke("firewall", "ADD", config, walls.netns["c1"], host=host)
        walls.call("DEL", {**config, "prevResult": None}, netns="")
        assert state(walls) == before, fault.rest
        if not fault.happened:
            break


@alone
@pytest.mark.rotating(2)
@pytest.mark.parametrize("name", CASES)
def test_failed_del_is_finished_by_the_next(walls: Walls, name: str) -> None:
    """If any operation of a DEL fails, DEL says so, and the next one removes all."""
    config = arrange(walls, CASES[name])
    before = state(walls)

    for fault in faults(rehearsal(walls.machine, "firewall", "DEL", config, walls.netns["c1"])):
        walls.ok("ADD", **CASES[name])
        with faulty(walls.machine, fault) as host:
            reply = walls.machine.invoke("firewall", "DEL", config, walls.netns["c1"], host=host)
        if reply.exit_code:
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
        elif fault.happened:
            assert re.fullmatch(TOLERATED, fault.what), fault.what
        walls.ok("DEL", **CASES[name])
        assert state(walls) == before, fault.what
        if not fault.happened:
            break

    assert len(fault.done) > 3


@alone
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_killed_call(walls: Walls, command: str) -> None:
    """Wherever a call is killed, DEL removes what is left."""
    keys = CASES["isolated"]
    config = arrange(walls, keys)
    before = state(walls)

    once = rehearsal(walls.machine, "firewall", command, config, walls.netns["c1"])
    for fault in faults(once, kill=True):
        if command == "DEL":
            walls.ok("ADD", **keys)
        pid = os.fork()  # noqa: TID251 - whose process is to be killed
        if pid == 0:
            with faulty(walls.machine, fault) as host:
                walls.machine.invoke("firewall", command, config, walls.netns["c1"], host=host)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == KILLED
        walls.call("DEL", {**config, "prevResult": None}, netns="")
        assert state(walls) == before
        if not killed:
            break

    assert fault.at > 5


@alone
@pytest.mark.parametrize("name", ["isolated", "iptables"])
def test_terminated_add_is_taken_back(walls: Walls, name: str) -> None:
    """Wherever SIGTERM interrupts an ADD, all is as it was."""
    config = arrange(walls, CASES[name])
    before = state(walls)

    once = rehearsal(walls.machine, "firewall", "ADD", config, walls.netns["c1"])
    for fault in faults(once, terminate=True, only=lambda what: what != "open namespace"):
        with faulty(walls.machine, fault) as host, suppress(Terminated):
            walls.machine.ok("firewall", "ADD", config, walls.netns["c1"], host=host)
        if not fault.happened:
            break
        assert state(walls) == before, fault.what

    assert len(fault.done) > 5


@pytest.mark.rotating(2)
@pytest.mark.parametrize("name", CASES)
def test_storm(walls: Walls, name: str) -> None:
    """ADDs and DELs that meet leave nothing, make nothing twice and take nobody's rules."""
    keys = CASES[name]
    arrange(walls, keys)
    before = state(walls)
    containers = [f"s{number}" for number in range(CLIENTS)]
    for number, cid in enumerate(containers):
        walls.attach(cid, number % 2)

    def live(number: int) -> None:
        cid = containers[number]
        for _ in range(3):
            for command in ("ADD", "CHECK", "ADD", "DEL", "DEL"):
                walls.ok(command, cid, bridge=number % 2, **keys)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(live, range(CLIENTS)))

    assert state(walls) == before
    walls.ok("CHECK", "other", **keys)
    walls.ok("CHECK", "far", bridge=1, **keys)


def test_beside_iptables_that_never_rests(walls: Walls) -> None:
    """Other programs' changes of the same table neither get lost nor disturb."""
    containers = [f"s{number}" for number in range(4)]
    for cid in containers:
        walls.attach(cid)

    def others() -> None:
        for number in range(40):
            walls.shell(f"iptables -w -A FORWARD -s 198.51.100.{number} -j DROP")

    def live(cid: str) -> None:
        for _ in range(10):
            walls.ok("ADD", cid)
            walls.ok("DEL", cid)

    with ThreadPoolExecutor(5) as pool:
        done = [pool.submit(others), *(pool.submit(live, cid) for cid in containers)]
        for one in done:
            one.result()

    assert len(walls.rules(chain="FORWARD")) == 40
    assert (walls.rules(), walls.records()) == ([], [])
