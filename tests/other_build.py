"""A version to come: what `make dist` and `make agent` make of sources that differ a little."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cni_common.spec.names import VERSION
from deploy import freeze, freeze_agent

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "build/other"
OTHER_VERSION = "99.0.0"
# By how much each indents what it answers: so an answer tells who gave it, also one to a success.
_INDENTS = {4: VERSION, 2: OTHER_VERSION}
# File, what stands there, and what the other version has instead.
_CHANGES = (
    ("cni_common/spec/names.py", f'\nVERSION = "{VERSION}"', f'\nVERSION = "{OTHER_VERSION}"'),
    ("cni_common/spec/wire.py", "indent=4", "indent=2"),
    ("plugins/__init__.py", '    "vrf",\n', ""),  # a plugin that no runtime needs
)
_SECONDS = 250  # a little less than a test may take that waits for it


def make() -> Path:
    """Bring the other version up to date and return its bin directory.

    Like dist/bin it is made anew only when a source changed, for whichever process is first.
    """
    _make("deploy.freeze", freeze.INPUTS)
    return TREE / "dist/bin"


def make_agent() -> Path:
    """Bring the other version's agent up to date, likewise, and return its directory."""
    _make("deploy.freeze_agent", freeze_agent.INPUTS)
    return TREE / "dist/agent"


def _make(program: str, inputs: Sequence[str]) -> None:
    TREE.mkdir(parents=True, exist_ok=True)
    with _locked(TREE / "lock"):
        _copy_sources(inputs)
        done = subprocess.run(
            [sys.executable, "-m", program],
            cwd=TREE,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stderr


def version_behind(answer: str) -> str:
    """Return the version that wrote a CNI result or error object."""
    indent = re.match(r"\{\n( +)", answer)
    assert indent, answer
    return _INDENTS[len(indent[1])]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + _SECONDS
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline, "the other build takes another process too long"
                time.sleep(0.1)
        yield


def _copy_sources(inputs: Sequence[str]) -> None:
    """Copy what a program is made of, so that it shows when something was not in that list."""
    for name in inputs:
        source, copy = ROOT / name, TREE / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, copy)
    for name, text, instead in _CHANGES:
        file = TREE / name
        before = file.read_text()
        assert before.count(text) == 1, f"{name}: {text!r}"
        file.write_text(before.replace(text, instead))
