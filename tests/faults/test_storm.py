"""A short storm; `make storm` runs a long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.storm import SEED
from tests.machine import ROOT
from tests.scope import ALL

pytestmark = pytest.mark.usefixtures("launchers")


def test_storm() -> None:
    """Clients of both host-locals, with and without an engine, and killed: see the module."""
    storm("--operations", "320", "--clients", "32", seconds=200)


@pytest.mark.full_kernel
def test_storm_of_a_full_kernel() -> None:
    """The same on vlan, ipvlan, dummy and vrf; a short one in `make test`."""
    operations, clients = ("320", "16") if ALL else ("48", "8")
    storm("--operations", operations, "--clients", clients, "--full-kernel", seconds=800)


def storm(*options: str, seconds: float) -> None:
    """Have a storm, which must end well within some seconds."""
    program: list[str | Path] = [
        ROOT / "tests/in-sandbox",
        sys.executable,
        "-m",
        "tests.faults.storm",
    ]
    seed = {name: value for name, value in os.environ.items() if name in (SEED, "PATH")}

    done = subprocess.run(
        [*program, *options],
        cwd=ROOT,
        env=seed,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("nothing left") == 2
