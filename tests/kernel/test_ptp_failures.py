"""ptp: failures and kills leave nothing behind, and harm no other container."""

from __future__ import annotations

import multiprocessing
import re
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.inprocess import INJECTED, KILLED, Fault, Terminated, faulty
from tests.kernel.points import IPV4, network
from tests.kernel.sweeps import faults, rehearsal
from tests.kernel.test_rollback import (
    TOLERATED_IN_ADD,
    TOLERATED_IN_DEL,
    calm,
    code_of,
    is_act,
    state,
    steady_state,
)
from tests.machine import Json, Machine, error_of
from tests.scope import ALL
from tests.snapshot import changes
from tests.waits import GENEROUS

pytestmark = [
    pytest.mark.without_engine(reason="fails in this process"),
    pytest.mark.timeout(300),
]

CONFIGS = {
    "dual-stack": {"ipMasq": True, "mtu": 1400},
    "iptables": {"ipMasq": True, "ipMasqBackend": "iptables"},
}


def record_of(machine: Machine) -> Path:
    """Return the file of the record of the container c1."""
    for path in Path(machine.state_dir, "attachments").glob("ptp-*"):
        if '"containerid":"c1"' in path.read_text().replace(" ", ""):
            return path
    raise AssertionError("c1 has no record")


def is_not_disk(what: str) -> bool:
    """Tell whether an operation is none of host-local's."""
    return not what.startswith("disk")


def arrange(machine: Machine, config: Json) -> tuple[str, str]:
    """Attach one container, so that all that is shared exists; return it and a second one."""
    other, container = machine.container(), machine.container()
    calm(machine, machine.host, other, container)
    machine.ok("ptp", "ADD", config, other, containerid="other")
    steady_state(machine, other)
    return other, container


@pytest.mark.parametrize("keys", CONFIGS.values(), ids=CONFIGS)
def test_any_failure_of_an_add_is_taken_back(machine: Machine, keys: Json) -> None:
    """If any operation fails, ADD says so, all is as it was, and the next ADD succeeds."""
    config = network(machine, **keys)
    other, container = arrange(machine, config)
    before = state(machine, other, container)
    failed = 0

    for fault in faults(rehearsal(machine, "ptp", "ADD", config, container), only=is_not_disk):
        with faulty(machine, fault) as host:
            reply = machine.invoke("ptp", "ADD", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            error = error_of(reply.stdout)
            assert INJECTED in error["msg"], (fault.what, error)
            assert changes(before, state(machine, other, container)) == [], (fault.what, error)
            machine.ok("ptp", "ADD", config, container)
        else:
            assert re.fullmatch(TOLERATED_IN_ADD, fault.what)
        machine.ok("ptp", "DEL", config, container)

    assert failed > (15 if ALL else 5)
    machine.ok("ptp", "DEL", config, container)
    assert changes(before, state(machine, other, container)) == []


def test_host_that_fails_for_good(machine: Machine) -> None:
    """When not even the way back works, a later DEL removes what is left."""
    config = network(machine, IPV4, ipMasq=True)
    other, container = arrange(machine, config)
    before = state(machine, other, container)

    once = rehearsal(machine, "ptp", "ADD", config, container)
    for fault in faults(once, lasting=True, only=is_not_disk):
        with faulty(machine, fault) as host:
            machine.invoke("ptp", "ADD", config, container, host=host)
        machine.ok("ptp", "DEL", config, container)
        assert changes(before, state(machine, other, container)) == [], fault.rest
        if not fault.happened:
            break

    assert len(fault.done) > 10


def test_terminated_add_is_taken_back(machine: Machine) -> None:
    """Wherever SIGTERM interrupts an ADD, all is as it was."""
    config = network(machine, IPV4, ipMasq=True)
    other, container = arrange(machine, config)
    before = state(machine, other, container)

    keys: Json = {"terminate": True, "only": lambda what: is_act(what) and "disk" not in what}
    for fault in faults(rehearsal(machine, "ptp", "ADD", config, container), **keys):
        with faulty(machine, fault) as host, suppress(Terminated):
            machine.ok("ptp", "ADD", config, container, host=host)
        if not fault.happened:
            break
        assert changes(before, state(machine, other, container)) == [], fault.what

    assert len(fault.done) > 5


@pytest.mark.parametrize("namespace", ["there", "gone"])
def test_killed_add_is_cleaned_up(machine: Machine, namespace: str) -> None:
    """Wherever a SIGKILL hits an ADD, DEL removes what it leaves, with or without namespace."""
    config = network(machine, ipMasq=True)
    other, container = arrange(machine, config)
    before = state(machine, other)

    for fault in faults(
        rehearsal(machine, "ptp", "ADD", config, container), kill=True, only=is_act
    ):
        was_killed = killed(machine, config, container, fault)
        machine.ok("ptp", "DEL", config, container if namespace == "there" else "")
        assert changes(before, state(machine, other)) == [], fault.at
        assert machine.link(container, "eth0") is None
        if not was_killed:
            break

    assert not was_killed
    assert fault.at > 8


def killed(machine: Machine, config: Json, container: str, fault: Fault) -> bool:
    """Run an ADD in a process that a fault kills; False when it never came to that."""

    def add() -> None:
        with faulty(machine, fault) as host:
            machine.ok("ptp", "ADD", config, container, host=host)

    process = multiprocessing.get_context("fork").Process(target=add)
    process.start()
    process.join(GENEROUS)
    assert process.exitcode in (0, KILLED)
    return process.exitcode == KILLED


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "unrecorded"])
def test_failed_delete_is_told_and_can_be_repeated(machine: Machine, recorded: bool) -> None:
    """If any operation fails, DEL says so; then all goes."""
    config = network(machine, IPV4, ipMasq=True)
    other, container = arrange(machine, config)
    before = state(machine, other, container)
    failed = 0

    def unrecord() -> None:
        if not recorded:
            record_of(machine).unlink()

    once = rehearsal(machine, "ptp", "DEL", config, container, unrecord)
    for fault in faults(once, only=lambda what: what != "open namespace" and is_not_disk(what)):
        result = machine.ok("ptp", "ADD", config, container)
        unrecord()
        fault.code = code_of(fault.at)
        with faulty(machine, fault) as host:
            reply = machine.invoke("ptp", "DEL", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code or not re.fullmatch(TOLERATED_IN_DEL, fault.what):
            failed += 1
            assert error_of(reply.stdout), fault.what
            machine.ok("ptp", "DEL", {**config, "prevResult": result}, container)
        assert changes(before, state(machine, other, container)) == [], fault.what

    assert failed > 5
    assert changes(before, state(machine, other, container)) == []
