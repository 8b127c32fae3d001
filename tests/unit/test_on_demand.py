"""The choice of the engine, and the parts of its life that need no other process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import engine_choice
from cni_common.kernel.cgroups import leave_groups, remove_groups
from cni_common.serve import on_demand
from cni_common.serve.engine import total
from cni_common.serve.status import look


@pytest.mark.parametrize(
    ("choice", "seconds"),
    [
        ("on-demand", 600.0),
        ("on-demand:60", 60.0),
        *((text, 0.0) for text in ("", "none", "systemd", "on-demand:0", "on-demand:x")),
        *((text, 0.0) for text in ("on-demand:-1", "on-demand:nan", "on-demand:inf")),
    ],
)
def test_the_choice(choice: str, seconds: float) -> None:
    """It has the time without a request after which the engine ends."""
    assert on_demand.idle_seconds(choice) == seconds


@pytest.mark.parametrize("choice", ["systemd", "on-demand", "on-demand:60", "none"])
def test_the_choice_is_a_link(tmp_path: Path, choice: str) -> None:
    """It is read by one call, and written at once over another one."""
    (tmp_path / "engine").symlink_to("before")

    engine_choice.write(tmp_path, choice)

    assert engine_choice.CHOICES.fullmatch(choice)
    assert engine_choice.read(tmp_path) == os.readlink(tmp_path / "engine") == choice
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_one_lock(tmp_path: Path) -> None:
    """One process has it, until it ends or closes it."""
    directory = str(tmp_path / "state")
    first = on_demand.take_lock(directory)

    assert first >= 0
    assert on_demand.take_lock(directory) == -1
    os.close(first)
    again = on_demand.take_lock(directory)
    assert again >= 0
    os.close(again)


def test_the_log_is_bounded(tmp_path: Path) -> None:
    """It begins anew when it has grown."""
    file = tmp_path / "engine.log"
    file.write_bytes(bytes((1 << 20) + 1))

    on_demand.log("one", str(tmp_path))
    on_demand.log("two", str(tmp_path))

    assert [line.rpartition("] ")[2] for line in file.read_text().splitlines()] == ["one", "two"]


def test_the_tally() -> None:
    """It is the sum of all places; a torn one counts as none."""
    assert total(b"") == 0
    assert total((3).to_bytes(8, "little") + (4).to_bytes(8, "little") + b"\1\2") == 7


def test_no_engine(tmp_path: Path) -> None:
    """Where none serves there is nothing to tell of."""
    assert look(str(tmp_path / "engine.sock")) is None


def test_a_group_that_cannot_be_left(tmp_path: Path) -> None:
    """A control group that stays is told, with the service that then ends the engine."""
    number = tmp_path.stat().st_dev
    (tmp_path / "own").write_text("0::/runtime.service\n1:name=systemd:/elsewhere\n")
    (tmp_path / "pycni-engine").write_text("no directory")
    (tmp_path / "mounts").write_text(
        f"29 23 0:0 / {tmp_path.parent} rw - cgroup2 cgroup2 rw,nsdelegate\n"  # covered
        f"30 23 {os.major(number)}:{os.minor(number)} / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    )

    problems = leave_groups(str(tmp_path / "own"), str(tmp_path / "mounts"))

    assert problems == [
        f"stays in the control group '/runtime.service' of '{tmp_path}' (Not a directory): the"
        " engine ends with it"
    ]


def test_groups_are_removed(tmp_path: Path) -> None:
    """One in which something is stays, and is told; one that is not there is no matter."""
    number = tmp_path.stat().st_dev
    device, lines = f"{os.major(number)}:{os.minor(number)}", []
    for name in ("cpu", "memory", "pids"):
        (tmp_path / name).mkdir()
        lines.append(f"30 23 {device} / {tmp_path / name} rw - cgroup cgroup rw,{name}\n")
    (tmp_path / "cpu/pycni-engine").mkdir()
    (tmp_path / "memory/pycni-engine/child").mkdir(parents=True)
    (tmp_path / "mounts").write_text("".join(lines))

    assert remove_groups(str(tmp_path / "mounts")) == [f"{tmp_path}/memory/pycni-engine"]
    assert not (tmp_path / "cpu/pycni-engine").exists()
