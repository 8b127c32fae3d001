"""`pycni` in a process of its own without a start of Python: a fork of the test's process."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import NoReturn

import commands
from plugins.__main__ import run
from tests.machine import CNI_BIN
from tests.resident import visiting

# What commands import only when they need it: imported once for all forks.
_LATE = ("pyroute2", "rich.style")


def pycni(netns: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `pycni` inside a network namespace, with the arguments `words`.

    It has descriptors 0 to 2 of its own: an empty stdin, and files that nothing else writes to.
    """
    _preload()
    outputs = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdout", "stderr")]
    try:
        with visiting(netns):
            child = os.fork()  # noqa: TID251 - the child is a command, and never returns
            if not child:
                _be(words, outputs)
        _, status = os.waitpid(child, 0)
        stdout, stderr = (os.pread(fd, os.fstat(fd).st_size, 0).decode() for fd in outputs)
    finally:
        for fd in outputs:
            os.close(fd)
    return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(status), stdout, stderr)


@cache
def _preload() -> None:
    for module in iter_modules(commands.__path__, "commands."):
        import_module(module.name)
    for name in _LATE:
        import_module(name)


def _be(words: tuple[str, ...], outputs: list[int]) -> NoReturn:
    """Be the command, in the forked process."""
    status = 70  # EX_SOFTWARE of sysexits.h: no status of a command
    streams = []
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        for target, fd in enumerate((null, *outputs)):
            os.dup2(fd, target)
        for fd, name in enumerate(("stdin", "stdout", "stderr")):
            streams.append(os.fdopen(fd, "w" if fd else "r", closefd=False))
            setattr(sys, name, streams[fd])
        sys.argv = [str(CNI_BIN / "pycni"), *words]
        status = run()
    except SystemExit as error:  # argparse's
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - no line of the test may run twice
        traceback.print_exc()
    finally:
        for stream in streams[1:]:
            stream.flush()
        os._exit(status)
