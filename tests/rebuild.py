"""A build made once more: two of the same sources have the same bytes in each file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.machine import ROOT


def assert_the_same_again(module: str, made: Path, again: Path) -> None:
    """Have a module of deploy/ build into `again` what it has built into `made`, and compare."""
    # By a process of its own, as `make dist`: what pytest has loaded shows in the bytes of code.
    command = (sys.executable, "-m", module, str(again))
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    first, second = _contents(made), _contents(again)
    assert [name for name in first | second if first.get(name) != second.get(name)] == []


def _contents(directory: Path) -> dict[str, bytes]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}
