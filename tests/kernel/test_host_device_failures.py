"""host-device: after failures and kills the device comes home with all that it had."""

from __future__ import annotations

import errno
import multiprocessing
import re
from contextlib import suppress

import pytest

from tests.faults.inprocess import INJECTED, KILLED, Fault, Terminated, faulty
from tests.kernel.lent import (
    IPV4,
    IPV6,
    NOTHING,
    await_home,
    forget_records,
    have,
    left,
    network,
    still_device,
)
from tests.kernel.sweeps import faults, rehearsal
from tests.kernel.test_rollback import (
    TOLERATED_IN_ADD,
    TOLERATED_IN_DEL,
    calm,
    code_of,
    is_act,
)
from tests.machine import Json, Machine, error_of
from tests.waits import GENEROUS

pytestmark = [
    pytest.mark.without_engine(reason="fails in this process"),
    pytest.mark.timeout(300),
]
PLUGIN = "host-device"


def is_not_disk(what: str) -> bool:
    """Tell whether an operation is none of host-local's."""
    return not what.startswith("disk")


def arrange(machine: Machine) -> tuple[str, Json]:
    """Return a container, and what the host's device has."""
    still_device(machine)
    container = machine.container()
    calm(machine, container)
    return container, have(machine)


def assert_undone(machine: Machine, container: str, before: Json, what: object) -> None:
    """Demand that all is as it was."""
    assert left(machine) == NOTHING, what
    assert [one["ifname"] for one in machine.ip(container, "link")] == ["lo"], what
    await_home(machine, before)


@pytest.mark.parametrize("ranges", [(IPV4, IPV6), ()], ids=["ipam", "layer2"])
def test_any_failure_of_an_add_is_taken_back(machine: Machine, ranges: tuple[Json, ...]) -> None:
    """Unlike the reference, a failing ADD leaves no device in the container."""
    (container, before), config, failed = arrange(machine), network(machine, *ranges), 0

    for fault in faults(rehearsal(machine, PLUGIN, "ADD", config, container), only=is_not_disk):
        with faulty(machine, fault) as host:
            reply = machine.invoke(PLUGIN, "ADD", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            error = error_of(reply.stdout)
            assert INJECTED in error["msg"], (fault.what, error)
            assert_undone(machine, container, before, (fault.what, error))
        else:
            assert re.fullmatch(TOLERATED_IN_ADD, fault.what)
            machine.ok(PLUGIN, "DEL", config, container)

    assert failed > 6
    machine.ok(PLUGIN, "DEL", config, container)
    assert_undone(machine, container, before, "the end")


def test_name_that_is_taken_meanwhile(machine: Machine) -> None:
    """A move that the kernel carries out by half, as its name inside is taken, is taken back."""
    (container, before), config = arrange(machine), network(machine, IPV4)
    fault = Fault(1, only=lambda what: what.startswith("move"))
    fault.act = lambda: machine.do(container, "ip link add eth0 type ifb")
    with faulty(machine, fault) as host:
        error = machine.refused(PLUGIN, "ADD", config, container, host=host)

    assert "move 'uplink'" in error["msg"], error
    assert fault.happened
    assert [one["ifname"] for one in machine.ip(container, "link")] == ["lo", "eth0"]
    assert left(machine) == NOTHING
    await_home(machine, before)


def test_terminated_add_is_taken_back(machine: Machine) -> None:
    """Wherever SIGTERM interrupts an ADD, the device is at home."""
    (container, before), config = arrange(machine), network(machine, IPV4)

    keys: Json = {"terminate": True, "only": lambda what: is_act(what) and "disk" not in what}
    for fault in faults(rehearsal(machine, PLUGIN, "ADD", config, container), **keys):
        with faulty(machine, fault) as host, suppress(Terminated):
            machine.ok(PLUGIN, "ADD", config, container, host=host)
        if not fault.happened:
            break
        assert_undone(machine, container, before, fault.what)

    assert len(fault.done) > 5


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_killed(machine: Machine, command: str) -> None:
    """Wherever a SIGKILL hits, the next DEL brings the device home, with or without a path."""
    (container, before), config = arrange(machine), network(machine, IPV4)

    once = rehearsal(machine, PLUGIN, command, config, container)
    for fault in faults(once, kill=True, only=is_act):
        if command == "DEL":
            machine.ok(PLUGIN, "ADD", config, container)
        was_killed = killed(machine, command, config, container, fault)
        machine.ok(PLUGIN, "DEL", config, container if fault.at % 2 else "")
        assert_undone(machine, container, before, fault.at)
        if not was_killed:
            break

    assert not was_killed
    assert fault.at > 4


def killed(machine: Machine, command: str, config: Json, container: str, fault: Fault) -> bool:
    """Run a call in a process that a fault kills; False when it never came to that."""

    def call() -> None:
        with faulty(machine, fault) as host:
            machine.ok(PLUGIN, command, config, container, host=host)

    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    process.join(GENEROUS)
    assert process.exitcode in (0, KILLED)
    return process.exitcode == KILLED


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "unrecorded"])
def test_failed_delete_is_told_and_can_be_repeated(machine: Machine, recorded: bool) -> None:
    """If any operation fails, DEL says so; then all goes home."""
    (container, before), config, failed = arrange(machine), network(machine, IPV4, IPV6), 0

    def unrecord() -> None:
        if not recorded:
            forget_records(machine)

    once = rehearsal(machine, PLUGIN, "DEL", config, container, unrecord)
    for fault in faults(once, only=lambda what: what != "open namespace" and is_not_disk(what)):
        result = machine.ok(PLUGIN, "ADD", config, container)
        unrecord()
        fault.code = code_of(fault.at)
        with faulty(machine, fault) as host:
            reply = machine.invoke(PLUGIN, "DEL", config, container, host=host)
        if not fault.happened:
            break
        failed += bool(reply.exit_code)
        if recorded:
            is_tolerated = re.fullmatch(rf"{TOLERATED_IN_DEL}|write record", fault.what)
            assert reply.exit_code or is_tolerated, fault.what
        if reply.exit_code or not recorded:
            machine.ok(PLUGIN, "DEL", {**config, "prevResult": result}, container)
        if recorded:  # else it comes home bare
            assert_undone(machine, container, before, fault.what)

    assert failed > 3
    assert left(machine) == NOTHING


def test_failure_that_persists(machine: Machine) -> None:
    """A lasting failure fails one DEL, and does not keep the container; the rest comes back."""
    (container, before), config = arrange(machine), network(machine, IPV4)
    machine.ok(PLUGIN, "ADD", config, container)

    for status in (1, 0):
        fault = Fault(1, lasting=True, only=lambda what: "2001:db8::1" in what, code=errno.EPERM)
        with faulty(machine, fault) as host:
            reply = machine.invoke(PLUGIN, "DEL", config, container, host=host)
        assert (reply.exit_code, fault.happened) == (status, True)

    assert left(machine) == NOTHING
    assert any("without address 2001:db8::1/64" in line for line in machine.log)
    assert have(machine)["routes"] != before["routes"]
    assert machine.addresses(machine.host, "uplink") == ["192.0.2.1/24"]
    assert have(machine)["ifalias"] == "still"


def test_kernel_that_refuses_for_good(machine: Machine) -> None:
    """An address that the host refuses each time is logged, and keeps no container."""
    (container, before), config = arrange(machine), network(machine, IPV4)
    machine.ok(PLUGIN, "ADD", config, container)
    path = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
    machine.command(machine.host, "sh", "-c", f"echo 1 >{path}")

    machine.ok(PLUGIN, "DEL", config, container)

    assert left(machine) == NOTHING
    assert machine.addresses(machine.host, "uplink") == ["192.0.2.1/24"]
    assert any("without address 2001:db8::1/64" in line for line in machine.log)
    assert before["mtu"] == have(machine)["mtu"]
