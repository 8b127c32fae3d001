"""A short storm; `make storm` runs a long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.storm import SEED
from tests.machine import ROOT

OPERATIONS, CLIENTS = 320, 32


@pytest.mark.usefixtures("launchers")
def test_storm() -> None:
    """Clients of both host-locals, with and without an engine, and killed: see the module."""
    program: list[str | Path] = [
        ROOT / "tests/in-sandbox",
        sys.executable,
        "-m",
        "tests.faults.storm",
    ]
    options = ["--operations", str(OPERATIONS), "--clients", str(CLIENTS)]
    seed = {name: value for name, value in os.environ.items() if name in (SEED, "PATH")}

    done = subprocess.run(
        [*program, *options],
        cwd=ROOT,
        env=seed,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("nothing left") == 2
