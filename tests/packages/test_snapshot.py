"""The snapshot: a call of a plugin goes on from it, or starts Python where it does not fit."""

from __future__ import annotations

import json
import marshal
import os
import resource
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from deploy import freeze
from deploy.interpreter import place, training

MIB = 1 << 20
NO_MODULES = ("modules", "other-modules")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bin directory with the Python of our own."""
    own = place.find()
    if own is None:
        pytest.skip("there is no interpreter: 'make interpreter' builds it, as root on Debian")
    made = tmp_path_factory.mktemp("bundles") / "bin"
    freeze.make(made, own)
    return made


@pytest.fixture
def bin_dir(bundles: Path, tmp_path: Path) -> Path:
    """A copy of it, at another path than that where the snapshot was made."""
    return Path(shutil.copytree(bundles, tmp_path / "bin"))


@pytest.fixture
def netns() -> Iterator[Path]:
    """A network namespace."""
    name = f"resumed-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield Path("/run/netns", name)
    subprocess.run(["ip", "netns", "delete", name], check=True)


def test_the_usual_calls_import_nothing(bin_dir: Path) -> None:
    """All that they need is in the snapshot: the files with the modules are not there."""
    for name in NO_MODULES:
        (_lib(bin_dir) / name).unlink()

    training.attach_all(bin_dir, rounds=1)


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 4096)


def _change(at: int, file: Path) -> None:
    with file.open("r+b") as opened:
        byte = os.pread(opened.fileno(), 1, at)
        os.pwrite(opened.fileno(), bytes([byte[0] ^ 1]), at)


def _empty(file: Path) -> None:
    os.truncate(file, 0)


def _make_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _misplace(part: int, file: Path) -> None:
    """Have the kernel refuse to map a part: where it is in the file is no beginning of a page."""
    count = struct.unpack_from("<I", file.read_bytes(), 28)[0]  # struct head of snapshot.c
    _change(56 + 24 * (part % count) + 16, file)


UNFIT: dict[str, Callable[[Path], object]] = {
    "not there": Path.unlink,
    "empty": _empty,
    "cut off": _cut,
    "no snapshot": partial(_change, 0),
    "of another program": partial(_change, 10),
    "a directory": _make_directory,
    "of variables that cannot be mapped": partial(_misplace, 1),
    "of memory that cannot be mapped": partial(_misplace, -1),
}


@pytest.mark.parametrize("damage", UNFIT)
def test_one_that_does_not_fit_is_not_used(bin_dir: Path, netns: Path, damage: str) -> None:
    """Then Python starts, and imports what it needs."""
    UNFIT[damage](_lib(bin_dir) / "snapshot")

    _assert_served(_add(bin_dir, netns))
    for name in NO_MODULES:
        (_lib(bin_dir) / name).unlink()
    without = _add(bin_dir, netns)
    assert without.returncode == 1
    assert json.loads(without.stdout)["code"] == 999


def test_it_is_not_used_where_the_environment_says_so(bin_dir: Path, netns: Path) -> None:
    """The variable is for a process that cannot map it, and no program of ours gets it."""
    (_lib(bin_dir) / "modules").unlink()

    _assert_served(_add(bin_dir, netns))
    assert _add(bin_dir, netns, _PYCNI_NO_SNAPSHOT="1").returncode == 1


def test_it_needs_no_more_memory_than_a_start(bin_dir: Path, netns: Path) -> None:
    """Where the limit is too low for the snapshot, Python starts, at whatever step that shows."""
    enough = next(
        limit
        for limit in range(16 * MIB, 200 * MIB, MIB)
        if _add(bin_dir, netns, limit=limit, _PYCNI_NO_SNAPSHOT="1").returncode == 0
    )
    limits = range(enough, 2 * enough, MIB // 4)

    answers = {limit: _add(bin_dir, netns, limit=limit) for limit in limits}

    assert {limit: done for limit, done in answers.items() if not done.stdout} == {}
    # With little more than nothing neither is possible, and with twice as much no module is read.
    for name in NO_MODULES:
        (_lib(bin_dir) / name).unlink()
    assert _add(bin_dir, netns, limit=enough).returncode != 0
    assert _add(bin_dir, netns, limit=2 * enough).returncode == 0


def test_only_root_may_write_to_it(bin_dir: Path) -> None:
    """Whatever mode it gets from the umask of its maker: it becomes the memory of root."""
    (_lib(bin_dir) / "snapshot").chmod(0o666)

    freeze._make_snapshot(_lib(bin_dir).parent)

    assert (_lib(bin_dir) / "snapshot").stat().st_mode & 0o777 == 0o644


def test_two_makers_make_the_same(bin_dir: Path, tmp_path: Path) -> None:
    """Another directory, environment and time: no byte of the file tells of them."""
    made = (_lib(bin_dir) / "snapshot").read_bytes()

    again = _make(bin_dir)

    assert again.returncode == 0, again.stderr
    assert again.stdout == made
    assert str(tmp_path).encode() not in made
    assert str(place.ROOT).encode() not in made


KEPT = {
    "a function of the C library": "ctypes.CDLL(None).gnu_get_libc_version",
    "memory of malloc": "ctypes.c_void_p(ctypes.CDLL(None).memalign(64, 64))",
}


@pytest.mark.parametrize("what", KEPT)
def test_no_pointer_leads_out_of_it(bin_dir: Path, what: str) -> None:
    """A module that keeps an address of the C library's is told when the snapshot is made."""
    start = _lib(bin_dir) / "start"
    source = (freeze.FROZEN / "start.py").read_text()
    keeping = f"\nsys.path.append('.')\nimport ctypes\nkept = {KEPT[what]}\n"
    start.write_bytes(marshal.dumps(compile(source + keeping, "start.py", "exec", optimize=2)))

    done = _make(bin_dir)

    assert done.returncode == 1
    assert b"leads to" in done.stderr


def _assert_served(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    assert [ip["address"] for ip in json.loads(done.stdout)["ips"]] == ["127.0.0.1/8", "::1/128"]


def _lib(bin_dir: Path) -> Path:
    return next(bin_dir.glob(".pycni/*/lib"))


def _make(bin_dir: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["make-snapshot"],
        executable=_lib(bin_dir).parent / "pycni",
        cwd=_lib(bin_dir),
        env={"SOME": "thing"},
        capture_output=True,
        check=False,
    )


def _add(
    bin_dir: Path, netns: Path, limit: int = resource.RLIM_INFINITY, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Have loopback do its ADD, with so many bytes of addresses."""
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": netns.name,
        "CNI_NETNS": str(netns),
        "CNI_IFNAME": "lo",
        "CNI_PATH": str(bin_dir),
        **variables,
    }
    return subprocess.run(
        [bin_dir / "loopback"],
        input='{"cniVersion":"1.0.0","name":"lo","type":"loopback"}',
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
