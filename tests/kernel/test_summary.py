"""`pycni` alone: the node in a few lines, then the verbs."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from commands import summary
from commands.verbs import VERBS
from tests.kernel import forked
from tests.kernel.test_commands import dead
from tests.machine import Machine


@pytest.mark.without_engine("the commands know nothing of it")
def test_summary(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks, containers, leases and what is wrong, and the verbs behind."""
    monkeypatch.setattr(summary, "STATE_DIR", machine.state_dir)
    monkeypatch.setattr(summary, "DATA_DIR", machine.data_dir)
    conf = machine.network(ipMasq=True)
    with ExitStack() as stack:
        container = machine.container()
        stack.enter_context(machine.process_in(container))
        machine.ok("bridge", "ADD", conf, container, containerid="alive")

        dead(machine, conf)
        one_dead = forked.pycni(machine.host).stdout.splitlines()[0]
        machine.ok("bridge", "DEL", conf, containerid="dead")
        well = forked.pycni(machine.host)
        machine.command(machine.host, "nft", "flush", "ruleset")
        ill = forked.pycni(machine.host)

    assert one_dead == "containers 2 on 1 network, 1 of them dead"
    assert (well.returncode, well.stderr) == (0, "")
    lines = well.stdout.splitlines()
    assert lines[:4] == [
        "containers 1 on 1 network",
        f"network    {machine.name}: 1 container, 1 lease",
        "           nothing is wrong; 'pycni doctor' looks closer",
        "",
    ]
    assert [name for name in VERBS if f"\n    {name} " not in well.stdout] == []
    assert "missing    " in ill.stdout
    assert "'pycni audit' shows them" in " ".join(ill.stdout.split())


def test_new_node(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first ADD there is the help alone, and nothing is made."""
    monkeypatch.setattr(summary, "STATE_DIR", f"{machine.state_dir}-none")
    monkeypatch.setattr(summary, "DATA_DIR", f"{machine.data_dir}-none")

    done = forked.pycni(machine.host)

    assert done.returncode == 0
    assert done.stdout.startswith("usage: pycni ")


@pytest.mark.without_engine("the commands know nothing of it")
def test_without_records(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot, or by the Go plugins, there are leases and no directory of records."""
    monkeypatch.setattr(summary, "STATE_DIR", f"{machine.state_dir}-none")
    monkeypatch.setattr(summary, "DATA_DIR", machine.data_dir)
    machine.ok("bridge", "ADD", machine.network(), machine.container())

    done = forked.pycni(machine.host)

    assert done.returncode == 0
    assert f"network    {machine.name}: 0 containers, 1 lease\n" in done.stdout
