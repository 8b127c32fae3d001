"""Build the Python of the bundle: CPython in one program, optimised for the calls of the plugins.

    python -m deploy.interpreter        as root, some ten minutes, once: .tools/interpreter

The sources are those of Debian with its security patches. They are compiled in a file system of
Debian 11, so that the program runs with each glibc since 2.30. docs/decisions.md has the figures.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from deploy import freeze
from deploy.interpreter.place import BUILT, MINOR, RELEASE, ROOT, Interpreter, InterpreterError
from deploy.release import chroot

HERE = Path(__file__).parent
SOURCES = "bookworm"  # the Debian whose sources of Python are compiled
PACKAGES = (
    *("gcc", "make", "libc6-dev", "dpkg-dev", "patch", "python3", "ca-certificates"),
    *("zlib1g-dev", "libffi-dev", "libmpdec-dev"),
)
INPUTS = (
    *(HERE / name for name in ("compile", "Setup.local", "slots.patch", "snapshot.patch")),
    *(HERE / name for name in ("program.c", "snapshot.c", "snapshot.h", "snapshot_memory.h")),
    ROOT / "deploy/frozen/setns.c",
)


def main() -> int:
    """Build the interpreter where it is not built yet, and make it the one that freeze uses."""
    directory = BUILT / _digest()
    try:
        BUILT.mkdir(parents=True, exist_ok=True)
        with (BUILT / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would compile in one directory
            if not (directory / "pycni").exists():
                _build(directory)
            _select(directory)
    except (InterpreterError, chroot.ChrootError, freeze.BuildError, OSError) as error:
        _say(f"error: {error}")
        return 1
    _say(f"'make dist' uses CPython {Interpreter(directory).source} in {directory}")
    return 0


def _digest() -> str:
    digest = hashlib.sha256(repr((RELEASE, SOURCES, PACKAGES)).encode())
    for file in INPUTS:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _build(directory: Path) -> None:
    """Make the directory. Raises InterpreterError, ChrootError, BuildError, OSError."""
    if sys.version_info[:2] != MINOR:
        raise InterpreterError(f".venv must have Python {'.'.join(map(str, MINOR))} for this")
    root = BUILT / RELEASE
    work = BUILT / "work"
    # The file system may be of other packages than PACKAGES now has.
    for old in (work, root):
        shutil.rmtree(old, ignore_errors=True)
    (work / "inputs").mkdir(parents=True)
    (work / "build").mkdir()
    for file in INPUTS:
        shutil.copy(file, work / "inputs")
    _say("a file system of Debian 11 with a compiler")
    chroot.make(root, RELEASE, PACKAGES)
    _add_sources(root)
    for step, words in (
        ("fetch", "the sources of CPython"),
        ("training", "compiling for the training"),
    ):
        _say(words)
        _compile(root, work, step)
    trained = _collect(root, work, work / "trained")
    _say("training: a bundle, and the calls of a runtime")
    # A snapshot would have the counts of its making in those of each call.
    freeze.make(work / "bin", trained, with_snapshot=False)
    _train(work)
    _say("compiling for the bundle")
    _compile(root, work, "release")
    _collect(root, work, directory)
    shutil.rmtree(work)


def _add_sources(root: Path) -> None:
    """Tell apt in the directory where the sources of Python are."""
    lines = chroot.source_lines(SOURCES).splitlines(keepends=True)
    sources = "".join(line for line in lines if line.startswith("deb-src"))
    (root / "etc/apt/sources.list.d/python.list").write_text(sources)


def _compile(root: Path, work: Path, step: str) -> None:
    """Run a step of `compile`. Raises InterpreterError."""
    binds = {work / "build": "/build", work / "inputs": "/inputs"}
    started = time.monotonic()
    done = chroot.run(root, "/inputs/compile", step, binds=binds, has_network=step == "fetch")
    log = work / f"{step}.log"
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise InterpreterError(f"the step '{step}' failed, '{log}' has all of it:\n{tail}")
    _say(f"{step}: {time.monotonic() - started:.0f} s")


def _collect(root: Path, work: Path, directory: Path) -> Interpreter:
    """Copy what a bundle needs into a directory."""
    new = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    build = work / "build"
    shutil.copy(build / "program", new / "pycni")
    shutil.copytree(build / "python/Lib", new / "Lib", ignore=_unused)
    shutil.copy(build / "python/LICENSE", new)
    shutil.copy(build / "source", new)
    (library,) = (root / "lib").glob("*-linux-gnu/libgcc_s.so.1")
    shutil.copy(library.resolve(), new / "libgcc_s.so.1")
    shutil.rmtree(directory, ignore_errors=True)
    new.rename(directory)
    return Interpreter(directory)


def _unused(_directory: str, names: list[str]) -> set[str]:
    return {"test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter", "__pycache__"} & set(
        names
    )


def _train(work: Path) -> None:
    """Make the calls of a runtime, whose profile goes into the build directory.

    Raises InterpreterError.
    """
    # The compiler has written the paths of the chroot into the program.
    environ = {**os.environ, "GCOV_PREFIX": str(work / "build"), "GCOV_PREFIX_STRIP": "1"}
    words = (sys.executable, "-m", "deploy.interpreter.training", str(work / "bin"))
    done = subprocess.run(
        [str(ROOT / "tests/in-sandbox"), *words],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InterpreterError(f"the training failed:\n{done.stdout}{done.stderr}")


def _select(directory: Path) -> None:
    link = BUILT / "current.new"
    link.unlink(missing_ok=True)
    link.symlink_to(directory.name)
    link.replace(BUILT / "current")


def _say(text: str) -> None:
    sys.stderr.write(f"interpreter: {text}\n")


if __name__ == "__main__":
    raise SystemExit(main())
