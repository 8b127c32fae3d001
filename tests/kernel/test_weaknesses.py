"""Weaknesses of the reference that ours must not have, and that no other file is about."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cni_common.kernel import iptables
from cni_common.node import host
from cni_common.spec.request import Command
from plugins import TYPES
from tests.faults.inprocess import Fault, faulty
from tests.machine import Json, Machine, error_of, files_below
from tests.waits import longer_if_busy, wait_until


def script(directory: Path, name: str, body: str) -> Path:
    """Write an executable shell script."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def is_running(pid: int) -> bool:
    """Tell whether there is such a process, and it has not ended."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.rotating(3)
@pytest.mark.both_edges
@pytest.mark.parametrize("command", ["ADD", "CHECK"])
@pytest.mark.parametrize("plugin", sorted({*TYPES} - {"portmap"}))  # enters no namespace
def test_own_namespace_is_refused_before_acting(
    machine: Machine, plugin: str, command: str
) -> None:
    """CNI_NETNS that is the plugin's own has code 8, is told by one object, and nothing is done."""
    before = machine.snapshot()
    config = machine.network(type=plugin)

    error = machine.refused(plugin, command, config, machine.host)

    assert error["code"] == 8
    assert machine.snapshot() == before


@pytest.mark.both_edges
def test_del_in_the_own_namespace_leaves_the_host_alone(machine: Machine) -> None:
    """A DEL whose path leads to the host's namespace by now succeeds without touching it."""
    machine.do(machine.host, "ip link add eth0 type veth peer name other")
    machine.ok("loopback", "DEL", {**machine.network(), "type": "loopback"}, machine.host)

    machine.ok("bridge", "DEL", machine.network(), machine.host)

    lo, eth0 = machine.link(machine.host, "lo"), machine.link(machine.host, "eth0")
    assert eth0 is not None
    assert lo is not None
    assert "UP" in lo["flags"]


@pytest.mark.both_edges
@pytest.mark.parametrize(
    ("change", "netns", "code"),
    [
        ({"cniVersion": "9.9.9"}, "", 1),
        ({"mtu": -1}, "", 7),
        ({"name": "a b"}, "", 7),
        ({}, "/nowhere", 8),
        ({"ipam": {"type": "absent"}}, "", 50),
        ({"ipMasq": True, "ipMasqBackend": "iptables"}, "", 50),
    ],
    ids=["version", "key", "name", "netns", "ipam", "iptables"],
)
def test_errors_have_a_version_and_a_fitting_code(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, change: Json, netns: str, code: int
) -> None:
    """Error objects carry cniVersion, and 999 is only for what has no code of its own."""
    monkeypatch.setattr(iptables, "_PATH", "/nowhere")
    config = machine.network(**{"cniVersion": "1.0.0", **change})

    reply = machine.invoke("bridge", "ADD", config, netns or machine.container())

    error = error_of(reply.stdout)
    assert error["code"] == code
    assert error["cniVersion"] == ("1.1.0" if code == 1 else "1.0.0")


@pytest.mark.both_edges
def test_delegate_that_hangs_is_killed(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delegate has a limited time; its children do not outlive it."""
    seconds = round(longer_if_busy(1))
    monkeypatch.setitem(host.DELEGATE_SECONDS, Command.ADD, seconds)
    script(
        tmp_path, "slow", f"[ $CNI_COMMAND = DEL ] || sleep 30 & echo $! >{tmp_path}/child; wait"
    )
    config = machine.network(ipam={"type": "slow"})

    error = machine.refused("bridge", "ADD", config, machine.container(), path=str(tmp_path))

    assert f"did not answer ADD within {seconds} s" in error["msg"]
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not is_running(child), "the child lives on")


@pytest.mark.both_edges
def test_what_a_failing_delegate_said_is_kept(machine: Machine, tmp_path: Path) -> None:
    """stderr of a delegate that fails is logged, beside its error object on stdout."""
    body = """echo 'the disk is full' >&2; echo '{"code": 51, "msg": "no room"}'; exit 1"""
    script(tmp_path, "failing", body)
    config = machine.network(ipam={"type": "failing"})

    error = machine.refused("bridge", "ADD", config, machine.container(), path=str(tmp_path))

    assert (error["code"], error["msg"]) == (51, "no room")
    assert any("the disk is full" in line for line in machine.log)


@pytest.mark.without_engine(reason="the call that fails is answered in this process")
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_late_failure_is_taken_back(machine: Machine, backend: str) -> None:
    """An ADD that fails at its very end leaves neither veth, masquerading, filter nor address."""
    config = machine.network(ipMasq=True, ipMasqBackend=backend, macspoofchk=True)
    container = machine.container()
    # The modules of iptables stay in the kernel, once it was used.
    machine.ok("bridge", "ADD", config, container)
    machine.ok("bridge", "DEL", config, container)
    before = machine.nft()
    # The container's end, the port, the bridge.
    end = Fault(at=3, code=errno.ENOMEM, only=lambda what: what.startswith("look up interface"))

    with faulty(machine, end) as faulty_host:
        machine.refused("bridge", "ADD", config, container, host=faulty_host)

    assert end.happened
    assert (machine.nft(), machine.ports(), machine.leases()) == (before, [], [])
    assert files_below(machine.state_dir) == {}
    assert machine.link(container, "eth0") is None


def test_failed_ipam_add_is_followed_by_its_del(machine: Machine, tmp_path: Path) -> None:
    """A delegate whose ADD failed gets the DEL that the specification demands."""
    body = f"""echo $CNI_COMMAND >>{tmp_path}/calls
[ $CNI_COMMAND = DEL ] || {{ echo '{{"code": 999, "msg": "half done"}}'; exit 1; }}"""
    script(tmp_path, "failing", body)
    config = machine.network(ipam={"type": "failing"})

    error = machine.refused("bridge", "ADD", config, machine.container(), path=str(tmp_path))

    assert error["msg"] == "half done"
    assert (tmp_path / "calls").read_text().split() == ["ADD", "DEL"]


def test_refusal_of_our_own_ipam_costs_nobody_an_address(machine: Machine) -> None:
    """host-local takes back its own failures: a refused duplicate keeps the living lease."""
    machine.ok("bridge", "ADD", machine.network(), machine.container())
    for path in Path(machine.state_dir, "attachments").glob("bridge-*"):
        path.unlink()  # it would refuse the second ADD before IPAM could

    error = machine.refused("bridge", "ADD", machine.network(), machine.container())

    assert "duplicate allocation is not allowed" in error["msg"]
    assert machine.leases() == ["10.9.0.2"]
