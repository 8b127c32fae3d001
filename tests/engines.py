"""Engines for tests: the real one in a process of its own, and launchers that know its socket."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

from cni_common.kernel.netns import CLONE_NEWNET
from cni_common.serve.engine import serve
from cni_common.serve.worker import Settings
from plugins import TYPES, load, load_all

ROOT = Path(__file__).resolve().parents[1]
BUILD = "tests"
BUNDLE_STATUS = 7  # of tests/launcher/bundle.c: no engine has served
_SECONDS = 15.0


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
        self.pid = os.fork()
        if self.pid == 0:
            _become_engine(netns, settings, path, log=log, listener=listener)
        self._await()

    def _await(self) -> None:
        """Wait until it is ready."""
        deadline = time.monotonic() + _SECONDS
        while not self.log_path.exists() or "wait for requests" not in self.log_path.read_text():
            assert time.monotonic() < deadline, f"no engine: {self.log_path.read_text()}"
            assert self.is_running(), f"the engine ended: {self.log_path.read_text()}"
            time.sleep(0.002)

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

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        deadline = time.monotonic() + _SECONDS
        while self.is_running():
            assert time.monotonic() < deadline, "the engine does not end"
            time.sleep(0.002)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def end(self) -> None:
        """Have it end and wait for that."""
        self.tell(signal.SIGTERM)
        code = self.wait()
        assert code == 0, self.log_path.read_text()


def _become_engine(
    netns: str, settings: Settings, path: str, *, log: Path, listener: socket.socket | None
) -> None:
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for fd in (1, 2):
            os.dup2(output, fd)
        with open(netns, "rb") as file:
            assert ctypes.CDLL(None).setns(file.fileno(), CLONE_NEWNET) == 0
        if listener:
            os.dup2(listener.fileno(), 3)
            os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        os.closerange(4 if listener else 3, 1 << 16)  # a test may hold locks by some of them
        serve(
            settings,
            path,
            load=load,
            load_all=load_all,
            log=lambda text: os.write(2, f"{text}\n".encode()),
        )
        status = 0
    finally:
        os._exit(status)


def _run(*words: str | Path) -> None:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
