"""bandwidth: failures, kills and calls at once leave nothing, and harm no other container."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.inprocess import INJECTED, KILLED, Fault, Terminated, faulty
from tests.kernel.limits import BOTH, NOTHING, SUBNETS, config, container, ifb_of, left, tbf
from tests.kernel.sweeps import faults, rehearsal
from tests.machine import Json, Machine, error_of
from tests.waits import GENEROUS

pytestmark = pytest.mark.timeout(300)
alone = pytest.mark.without_engine(reason="fails in this process")

LIMIT = 100  # operations: more than any ADD or DEL here has
CLIENTS = 6  # an engine on a busy machine would send some of more to one-shot processes
CASES: Mapping[str, Json] = {
    "both": BOTH,
    "ingress": {"ingressRate": 8_000_000},
    "subnets": {**BOTH, "unshapedSubnets": SUBNETS},
}
OPEN = "open namespace"  # the next user opens it again


def arrange(machine: Machine, keys: Json) -> tuple[str, Json]:
    """Limit one container; return another one and its configuration."""
    other = container(machine, 2)
    machine.ok("bandwidth", "ADD", config(machine, 2, **BOTH), other, containerid="other")
    return container(machine), config(machine, **keys)


@alone
@pytest.mark.parametrize("name", CASES)
def test_any_failure_of_an_add_is_taken_back(machine: Machine, name: str) -> None:
    """If any operation fails, ADD says so, all is as it was, and the next ADD succeeds."""
    netns, conf = arrange(machine, CASES[name])
    before = left(machine)

    for fault in faults(rehearsal(machine, "bandwidth", "ADD", conf, netns)):
        with faulty(machine, fault) as host:
            reply = machine.invoke("bandwidth", "ADD", conf, netns, host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
            assert left(machine) == before, fault.what
            machine.ok("bandwidth", "ADD", conf, netns)
        else:
            assert fault.what == OPEN
        machine.ok("bandwidth", "DEL", conf, netns)

    assert len(fault.done) > (15 if name == "both" else 8)


@alone
@pytest.mark.parametrize("name", CASES)
def test_any_failure_of_a_repeated_add(machine: Machine, name: str) -> None:
    """An ADD that replaces limits and fails leaves none, or what the next DEL removes."""
    netns, conf = arrange(machine, CASES[name])
    before = left(machine)

    def rehearse(fault: Fault) -> None:
        machine.ok("bandwidth", "ADD", conf, netns)
        rehearsal(machine, "bandwidth", "ADD", conf, netns)(fault)

    for fault in faults(rehearse):
        machine.ok("bandwidth", "ADD", conf, netns)
        with faulty(machine, fault) as host:
            reply = machine.invoke("bandwidth", "ADD", conf, netns, host=host)
        assert bool(reply.exit_code) == fault.happened or fault.what == OPEN, fault.what
        machine.ok("bandwidth", "DEL", conf, netns)
        assert left(machine) == before
        if not fault.happened:
            break


@alone
@pytest.mark.parametrize("name", CASES)
def test_host_that_fails_for_good(machine: Machine, name: str) -> None:
    """When nothing works any more, not even the way back, a later DEL removes what is left."""
    netns, conf = arrange(machine, CASES[name])
    before = left(machine)

    for fault in faults(rehearsal(machine, "bandwidth", "ADD", conf, netns), lasting=True):
        with faulty(machine, fault) as host:
            machine.invoke("bandwidth", "ADD", conf, netns, host=host)
        machine.ok("bandwidth", "DEL", conf, "")
        assert left(machine) == before, fault.rest
        if not fault.happened:
            break


@alone
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "unrecorded"])
@pytest.mark.parametrize("name", CASES)
def test_failed_del_is_finished_by_the_next(machine: Machine, name: str, recorded: bool) -> None:
    """If any operation of a DEL fails, DEL says so, and the next one removes all."""
    netns, conf = arrange(machine, CASES[name])
    before = left(machine)
    failed = 0

    def unrecord() -> None:
        if not recorded:
            forget(machine, "c1")

    for fault in faults(rehearsal(machine, "bandwidth", "DEL", conf, netns, unrecord)):
        machine.ok("bandwidth", "ADD", conf, netns)
        unrecord()
        with faulty(machine, fault) as host:
            reply = machine.invoke("bandwidth", "DEL", conf, netns, host=host)
        if reply.exit_code:
            failed += 1
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
        elif fault.happened:
            assert fault.what == OPEN
        machine.ok("bandwidth", "DEL", conf, netns)
        assert left(machine) == before, fault.what
        if not fault.happened:
            break

    assert failed > 2


@alone
@pytest.mark.parametrize("after", ["DEL", "ADD"])
def test_killed_add(machine: Machine, after: str) -> None:
    """Wherever an ADD is killed, DEL removes what is left, and an ADD alone comes up again."""
    netns, conf = arrange(machine, BOTH)
    before = left(machine)

    for fault in faults(rehearsal(machine, "bandwidth", "ADD", conf, netns), kill=True):
        was_killed = killed(machine, conf, netns, fault)
        if after == "ADD":
            machine.ok("bandwidth", "ADD", conf, netns)
            machine.ok("bandwidth", "CHECK", conf, netns)
        machine.ok("bandwidth", "DEL", conf, "")
        assert left(machine) == before, fault.at
        if not was_killed:
            break

    assert not was_killed
    assert fault.at > 8


@alone
def test_terminated_add_is_taken_back(machine: Machine) -> None:
    """Wherever SIGTERM interrupts an ADD, all is as it was."""
    netns, conf = arrange(machine, BOTH)
    before = left(machine)

    for fault in faults(
        rehearsal(machine, "bandwidth", "ADD", conf, netns),
        terminate=True,
        only=lambda what: what != OPEN,
    ):
        with faulty(machine, fault) as host, suppress(Terminated):
            machine.ok("bandwidth", "ADD", conf, netns, host=host)
        if not fault.happened:
            break
        assert left(machine) == before, fault.what

    assert len(fault.done) > 8


@alone
def test_veth_that_goes_away(machine: Machine) -> None:
    """A pair that is deleted during ADD or DEL is no reason to leave an ifb."""
    conf = config(machine, **BOTH)
    for command in ("ADD", "DEL"):
        for number in range(1, LIMIT):
            netns = container(machine)
            if command == "DEL":
                machine.ok("bandwidth", "ADD", conf, netns)
            fault = Fault(number, act=lambda: machine.try_command(machine.host, *DELETE))
            with faulty(machine, fault) as host:
                machine.invoke("bandwidth", command, conf, netns, host=host)
            machine.try_command(machine.host, *DELETE)
            machine.ok("bandwidth", "DEL", conf, netns)
            assert left(machine) == NOTHING, (command, fault.done)
            if not fault.happened:
                break
        assert number > 5


DELETE = ("ip", "link", "del", "host1")


def test_storm(machine: Machine) -> None:
    """Many containers at once get their own limits, and nothing is left of any."""
    netns = {number: container(machine, number) for number in range(1, CLIENTS + 1)}

    def live(number: int) -> None:
        cid = f"c{number}"
        for rate in (8_000_000 + number * 80, 16_000_000 + number * 80):
            conf = config(machine, number, ingressRate=rate, egressRate=rate * 2)
            result = machine.ok("bandwidth", "ADD", conf, netns[number], containerid=cid)
            assert tbf(machine, f"host{number}").rate == rate // 8
            assert tbf(machine, ifb_of(result)).rate == rate // 4
            machine.ok("bandwidth", "CHECK", conf, netns[number], containerid=cid)
            machine.ok("bandwidth", "DEL", conf, netns[number], containerid=cid)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(live, netns))

    assert left(machine) == NOTHING


def test_two_calls_for_one_attachment(machine: Machine) -> None:
    """Of ADDs for one container at once each succeeds or is told to try again; none breaks it."""
    netns, conf = container(machine), config(machine, **BOTH)
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(machine.invoke, "bandwidth", "ADD", conf, netns) for _ in range(6)]
        replies = [call.result() for call in calls]

    assert {error_of(reply.stdout)["code"] for reply in replies if reply.exit_code} <= {11}
    assert [reply for reply in replies if not reply.exit_code]
    machine.ok("bandwidth", "CHECK", conf, netns)
    machine.ok("bandwidth", "DEL", conf, netns)
    assert left(machine) == NOTHING


def killed(machine: Machine, conf: Json, netns: str, fault: Fault) -> bool:
    """Run an ADD in a process that the fault ends; tell whether it did."""

    def add() -> None:
        with faulty(machine, fault) as host:
            machine.ok("bandwidth", "ADD", conf, netns, host=host)

    process = multiprocessing.get_context("fork").Process(target=add)
    process.start()
    process.join(GENEROUS)
    assert process.exitcode in (0, KILLED)
    return process.exitcode == KILLED


def forget(machine: Machine, containerid: str) -> None:
    """Remove the record of a container."""
    for path in Path(machine.state_dir, "attachments").iterdir():
        if f'"containerid":"{containerid}"' in path.read_text():
            path.unlink()
