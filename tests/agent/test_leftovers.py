"""What pods that the runtime does not know have left; gRPC's own server is the runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.leftovers import SOCKETS, Leftovers, sockets_of
from tests.agent.test_runtime import Runtime, served
from tests.kernel.test_commands import age
from tests.machine import CNI_BIN, Machine
from tests.resident import visiting


def attach(machine: Machine, *containers: str) -> list[str]:
    """Attach containers by ptp; return their namespaces."""
    config = machine.network(type="ptp", bridge=None, isGateway=None)
    found = []
    for one in containers:
        found.append(machine.container())
        machine.ok("ptp", "ADD", config, found[-1], containerid=one)
    return found


def look(machine: Machine, *sockets: str) -> tuple[str, ...]:
    """Look for leftovers, as the agent on this host does."""
    program = str(CNI_BIN / "pycni")
    leftovers = Leftovers(sockets, program, machine.log.append, state_dir=machine.state_dir)
    with visiting(machine.host):
        return leftovers.look()


def test_the_runtime_and_the_namespaces_decide(machine: Machine, tmp_path: Path) -> None:
    """Only the pod goes that neither knows, at the second look."""
    lost, known, alive = attach(machine, "lost", "known", "alive")
    machine.end(lost)
    machine.end(known)
    path = tmp_path / "cri.sock"

    with served(path, Runtime("known")):
        age(machine)
        assert look(machine, str(path)) == ()
        first = machine.leases()
        age(machine)
        assert look(machine, str(path)) == ()

    assert first == ["10.9.0.2", "10.9.0.3", "10.9.0.4"]
    assert machine.leases() == ["10.9.0.3", "10.9.0.4"]
    assert any("removed what was left of pod sandbox lost" in line for line in machine.log)
    assert machine.ping(machine.host, "10.9.0.4")
    assert alive


@pytest.mark.parametrize("known", ["", "away"])
def test_without_an_answer_nothing_goes(machine: Machine, tmp_path: Path, known: str) -> None:
    """No socket is no runtime to ask; one that does not answer is a problem."""
    (lost,) = attach(machine, "lost")
    machine.end(lost)
    path = tmp_path / "cri.sock"
    if known:
        path.touch()

    problems: list[str] = []
    for _ in range(2):
        age(machine)
        problems += look(machine, str(path))

    assert machine.leases() == ["10.9.0.2"]
    assert len(problems) == (2 if known else 0)
    assert all(one.startswith("leftovers of pods stay, as the runtime") for one in problems)


def test_no_socket_is_logged_once(tmp_path: Path) -> None:
    """Not at each look; again where one was there meanwhile; never where none is to be asked."""
    log: list[str] = []
    paths = [tmp_path / "one.sock", tmp_path / "other.sock"]
    leftovers = Leftovers([*map(str, paths)], "pycni", log.append, state_dir=str(tmp_path / "none"))
    for _ in range(3):
        assert leftovers.look() == ()

    assert log == [
        "leftovers of pods stay, as no runtime can be asked which pods it knows: there is no socket"
        f" {paths[0]} or {paths[1]}; name it by --runtime-socket"
    ]
    paths[1].touch()
    leftovers.look()
    paths[1].unlink()
    leftovers.look()
    assert log == log[:1] * 2
    Leftovers([], "pycni", log.append).look()
    assert len(log) == 2


def test_sockets() -> None:
    """By default those of the host, seen through a process of it."""
    assert sockets_of("auto", "/proc/1/root") == tuple(f"/proc/1/root{one}" for one in SOCKETS)
    assert sockets_of("/run/other.sock", "/proc/1/root") == ("/run/other.sock",)
    assert sockets_of("", "/proc/1/root") == ()
