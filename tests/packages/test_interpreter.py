"""The Python that `make interpreter` builds: it starts in less time, and leaves nothing out."""

from __future__ import annotations

import marshal
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import freeze
from deploy.interpreter import place

ROUNDS = 15
MOST = 0.5  # of the processor time of a call with the machine's Python; 0.37 was measured
CONFIG = b'{"cniVersion":"1.0.0","name":"lo","type":"loopback"}'


@pytest.fixture(scope="module")
def own() -> place.Interpreter:
    """The interpreter."""
    found = place.find()
    if found is None:
        pytest.skip("there is no interpreter: 'make interpreter' builds it, as root on Debian")
    return found


@pytest.fixture(scope="module")
def bins(own: place.Interpreter, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Bin directories with the Python of our own, and with that of .venv."""
    folder = tmp_path_factory.mktemp("bundles")
    freeze.make(folder / "own", own)
    freeze.make(folder / "other", None)
    return folder / "own", folder / "other"


@pytest.fixture(scope="module")
def netns() -> Iterator[Path]:
    """A network namespace."""
    subprocess.run(["ip", "netns", "add", "start"], check=True)
    yield Path("/run/netns/start")
    subprocess.run(["ip", "netns", "delete", "start"], check=True)


def test_a_call_takes_less_of_a_processor(bins: tuple[Path, Path], netns: Path) -> None:
    """That is what the interpreter is built for: medians of calls in turns."""
    seconds: dict[Path, list[float]] = {one: [] for one in bins}
    for _ in range(ROUNDS):
        for one in bins:
            seconds[one].append(_seconds_of_call(one, netns))

    own, other = (statistics.median(seconds[one]) for one in bins)

    assert own < MOST * other


def _seconds_of_call(bin_dir: Path, netns: Path) -> float:
    """Return the processor time of an ADD of loopback without an engine, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "start",
        "CNI_NETNS": str(netns),
        "CNI_IFNAME": "lo",
        "CNI_PATH": str(bin_dir),
    }
    subprocess.run(
        [bin_dir / "loopback"], input=CONFIG, env=environ, check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_classes_inherit_as_in_another_python(own: place.Interpreter, tmp_path: Path) -> None:
    """slots.patch makes classes sooner, and no class another one."""
    script = Path(__file__).with_name("inheritance.py")
    lib = tmp_path / "lib"
    lib.mkdir()
    for path in own.stdlib.iterdir():
        (lib / path.name).symlink_to(path)
    code = compile(script.read_text(), "inheritance.py", "exec", optimize=2)
    (lib / "start").write_bytes(marshal.dumps(code))
    program = shutil.copy(own.program, tmp_path)

    assert _output(program) == _output(sys.executable, "-IS", "-OO", script)


def test_every_module_of_the_bundle_can_be_imported(bins: tuple[Path, Path]) -> None:
    """The two programs import the same for all verbs: help loads each of them."""
    helps = [_output(one / "pycni", "--help") for one in bins]
    versions = [_output(one / "pycni", "version") for one in bins]

    assert helps[0] == helps[1]
    assert "built for this program" in versions[0]
    assert "built for this program" not in versions[1]


def _output(*words: Path | str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
