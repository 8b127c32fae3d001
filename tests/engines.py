"""Engines for tests: the real one in a process of its own, and launchers that know its socket."""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from cni_common.kernel.netns import CLONE_NEWNET
from cni_common.serve import engine
from cni_common.serve.worker import Settings
from plugins import TYPES, load, load_all
from tests.waits import GENEROUS

ROOT = Path(__file__).resolve().parents[1]
BUILD = "tests"
BUNDLE_STATUS = 7  # of tests/launcher/bundle.c: no engine has served
_READY = "wait for requests"  # is in what an engine logs once it serves
_READY_FD = 4  # of the engine, by which it tells us so


@cache
def launcher_dir() -> Path:
    """Return a CNI bin directory of launchers, whose socket is `socket_path()`; made once.

    In place of the frozen program they start a stand-in, which says so.
    """
    directory = Path(tempfile.mkdtemp(prefix="pycni-launcher-"))
    atexit.register(_remove, os.getpid(), directory)
    variables = {
        "OUTPUT": directory / "pycni",
        "BUILD": BUILD,
        "BUNDLE": ".pycni/pycni",
        "SOCKET": directory / "run" / "engine.sock",
    }
    (directory / ".pycni").mkdir()
    _run("make", "-C", "launcher", *(f"{name}={value}" for name, value in variables.items()))
    _run("cc", "-static", "-o", str(directory / ".pycni" / "pycni"), "tests/launcher/bundle.c")
    for name in TYPES:
        os.link(directory / "pycni", directory / name)
    return directory


def _remove(pid: int, directory: Path) -> None:
    if os.getpid() == pid:  # not where a test has forked
        shutil.rmtree(directory, ignore_errors=True)


def socket_path() -> Path:
    """Return the path of the engine's socket, one for each process that runs tests."""
    return launcher_dir() / "run" / "engine.sock"


class Engine:
    """An engine that lives in the network namespace `netns`, forked from this process.

    So it has what a test has patched.
    """

    def __init__(
        self, netns: str, settings: Settings, log: Path, listener: socket.socket | None = None
    ) -> None:
        """`listener` is what systemd would hand over, None: the engine makes its socket."""
        self.log_path = log
        path = str(socket_path())
        _import_all()
        ready, told = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            _become_engine(netns, settings, path, log=log, listener=listener, told=told)
        os.close(told)
        self._life = os.pidfd_open(self.pid)  # readable once it has ended
        try:
            self._await(ready)
        finally:
            os.close(ready)

    def _await(self, ready: int) -> None:
        """Wait until it is ready."""
        happened = _first_of(ready, self._life)
        log = self.log_path.read_text() if self.log_path.exists() else ""
        assert happened, f"no engine within {GENEROUS:.0f} s: {log}"
        assert _READY in log, f"the engine ended: {log}"

    def is_running(self) -> bool:
        """Tell whether its supervisor has not ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def workers(self) -> list[int]:
        """Return the process ids of its workers."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(word) for word in text.split()]

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def turned_away(self) -> int:
        """Return the number of requests that it says it has turned away at its end."""
        said = re.findall(r"requests turned away: (\d+)", self.log_path.read_text())
        return sum(int(count) for count in said)

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        assert _first_of(self._life), f"the engine does not end within {GENEROUS:.0f} s"
        os.close(self._life)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def end(self) -> None:
        """Have it end and wait for that."""
        self.tell(signal.SIGTERM)
        code = self.wait()
        assert code == 0, self.log_path.read_text()


@cache
def _import_all() -> None:
    """Import once what every engine imports at its start."""
    load_all()
    engine._import_the_rest()


def _first_of(*fds: int) -> list[int]:
    """Return which of these files can be read, as soon as one can; none after GENEROUS."""
    waiting = select.poll()
    for fd in fds:
        waiting.register(fd, select.POLLIN)
    return [fd for fd, _event in waiting.poll(GENEROUS * 1000)]


def _become_engine(
    netns: str,
    settings: Settings,
    path: str,
    *,
    log: Path,
    listener: socket.socket | None,
    told: int,
) -> None:
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for fd in (1, 2):
            os.dup2(output, fd)
        with open(netns, "rb") as file:
            assert ctypes.CDLL(None).setns(file.fileno(), CLONE_NEWNET) == 0
        # Out of the way first: any of them may have a number that another is to have.
        copies = [fcntl.fcntl(file, fcntl.F_DUPFD, 10) for file in (told, listener or told)]
        os.dup2(copies[0], _READY_FD, inheritable=False)
        if listener:
            os.dup2(copies[1], 3)
            os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        else:
            os.closerange(3, _READY_FD)
        os.closerange(_READY_FD + 1, 1 << 16)  # a test may hold locks by some of them
        engine.serve(settings, path, load=load, load_all=load_all, log=_tell)
        status = 0
    finally:
        os._exit(status)


def _tell(text: str) -> None:
    """Log a line; have the test know when it is the one that says that the engine serves."""
    os.write(2, f"{text}\n".encode())
    if _READY in text:
        os.write(_READY_FD, b"!")
        os.close(_READY_FD)


def _run(*words: str | Path) -> None:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=GENEROUS, check=False
    )
    assert done.returncode == 0, done.stderr
