"""A program that keeps the engine's socket as systemd does with the units of deploy/.

    python -m tests.kubernetes.keeper SOCKET PROGRAM [ARGUMENT...]

It takes the path of the socket from any other one, as systemd does, has a request start the program
where none of its runs, and hands over the socket by sd_listen_fds(3). SIGTERM ends both. It stands
in for systemd where process 1 is the test's: tests/agent has the real one.
"""

# ruff: noqa: TID251  # a program of its own, which is its process's edge

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.kubernetes.daemons import Daemon
from tests.kubernetes.node import BIN, Node
from tests.machine import ROOT
from tests.waits import wait_until

SOCKET = "/run/pycni/engine.sock"


def main(path: str, words: Sequence[str]) -> None:
    """Keep the socket until SIGTERM."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        Path(path).unlink(missing_ok=True)
        listener.bind(path)
        listener.listen(128)
        readable = select.poll()
        readable.register(listener, select.POLLIN)
        while readable.poll():
            pid = os.fork()
            if not pid:
                _become(words, listener.fileno())
            signal.signal(signal.SIGTERM, lambda *_, pid=pid: _end(pid))
            os.waitpid(pid, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _become(words: Sequence[str], listener: int) -> None:
    os.dup2(listener, 3)
    os.set_inheritable(3, True)  # noqa: FBT003 - where it had that number already
    environ = {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    os.execve(words[0], list(words), environ)


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    os._exit(0)


@contextmanager
def socket_kept(node: Node) -> Iterator[None]:
    """Have it keep the socket of a node during the block."""
    words = [sys.executable, "-m", "tests.kubernetes.keeper", SOCKET, f"{BIN}/pycni", "engine"]
    command = node.entered("env", f"PYTHONPATH={ROOT}", *words)
    before = _inode(node)
    keeper = node.daemons["keeper"] = Daemon(command, node.logs / "keeper.log", node.environ)
    try:
        wait_until(lambda: _inode(node) not in (0, before), keeper.tail)
        yield
    finally:
        node.daemons.pop("keeper").stop()


def _inode(node: Node) -> int:
    path = node.path(SOCKET)
    try:
        return path.stat().st_ino
    except FileNotFoundError:  # for a moment
        return 0


def engine_of(node: Node) -> dict[str, str]:
    """Return what the engine that serves on a node says of itself, nothing if none serves."""
    done = node.run(f"{BIN}/pycni", "engine", "--status")
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    return {} if done.returncode else rows


def kept_engine(node: Node) -> str:
    """Return the build of the engine that it has started on a node, "" if another one serves."""
    rows = engine_of(node)
    pid = rows.get("pid", "")
    if not pid.isdecimal():
        return ""
    parent = node.run("ps", "-o", "ppid=", "-p", pid).stdout.strip() or "1"
    words = node.run("ps", "-o", "args=", "-p", parent).stdout
    return rows["build"] if "tests.kubernetes.keeper" in words else ""


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
