"""The state of the engine that serves: by its greeting, and by its files below /proc."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass

from cni_common.serve.engine import NAMELESS, TALLY, owner_of, total
from cni_common.serve.worker import PROTOCOL

_GREETING = struct.Struct("<6sH16s")  # launcher/launcher.c: an engine's first message
_GREETING_MAX = 256  # bytes: the build follows
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_SCM_CREDENTIALS = 2  # linux/socket.h
_HELLO_SECONDS = 2.0  # as long as a launcher waits


@dataclass(frozen=True, slots=True)
class Status:
    """An engine; 0 and "" where something is not known."""

    build: str  # "": it does not answer
    pid: int  # of the supervisor
    since: float  # seconds since the epoch
    workers: int
    requests: int
    memory_kib: int  # PSS of all its processes: shared pages count once
    groups: str  # its control groups, which end it when they are killed

    def rows(self) -> dict[str, str]:
        """Return the values in words, for people, by their names."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.since))
        return {
            "build": self.build or "does not answer",
            "pid": str(self.pid or "not to be seen from here"),
            "since": stamp if self.since else "not known",
            "workers": str(self.workers),
            "requests": str(self.requests),
            "memory": f"{self.memory_kib / 1024:.1f} MiB",
            "groups": self.groups or "not known",
        }

    def line(self) -> str:
        """Return the same in a line, without control groups."""
        rows = self.rows()
        return (
            f"build {rows['build']}, pid {rows['pid']}, since {rows['since']}, {self.workers}"
            f" workers, {self.requests} requests, {rows['memory']}"
        )


def look(path: str) -> Status | None:
    """Return the state of the engine at the socket `path`, None where none serves.

    Takes two seconds at most. Only root learns of memory and requests.
    """
    build, worker = greeting(path)
    pid = _parent(worker) if worker else 0
    with suppress(OSError):
        pid = pid or max(owner_of(path), 0)
    if not build and not pid:
        return None
    workers = _children(pid)
    return Status(
        build=build,
        pid=pid,
        since=_start(pid),
        workers=len(workers),
        requests=_requests(pid),
        memory_kib=sum(_memory(one) for one in (pid, *workers)),
        groups=_groups(pid),
    )


def greeting(path: str) -> tuple[str, int]:
    """Return the build that the engine at the socket `path` says, and the worker's process id.

    ("", 0) where none answers, "" and the id where the engine speaks another protocol.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(_HELLO_SECONDS)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            sock.connect(path)
            data, control, _, _ = sock.recvmsg(_GREETING_MAX, socket.CMSG_SPACE(_PEER.size))
        except OSError:
            return "", 0
    if len(data) < _GREETING.size:
        return "", 0
    magic, protocol, _ = _GREETING.unpack_from(data)
    if magic != b"pycni\0":
        return "", 0
    pids = [_PEER.unpack(text)[0] for _, kind, text in control if kind == _SCM_CREDENTIALS]
    build = data[_GREETING.size :].decode("ascii", "replace") if protocol == PROTOCOL else ""
    return build, pids[0] if pids else 0


def supervisor_of(worker: int) -> int:
    """Return the process whose worker this is, 0 for none: one that was killed has left it alone.

    Only root learns that of root's processes.
    """
    parent = _parent(worker) if worker else 0
    with suppress(OSError):
        if parent and os.path.samefile(f"/proc/{parent}/exe", f"/proc/{worker}/exe"):
            return parent
    return 0


def _stat(pid: int) -> list[str]:
    """Return the fields of proc_pid_stat(5) after the name, none if there is no such process."""
    with suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
    return []


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _start(pid: int) -> float:
    fields = _stat(pid) if pid else []
    if not fields:
        return 0.0
    after_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + after_boot


def _children(pid: int) -> list[int]:
    with suppress(OSError), open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]
    return []


def _requests(pid: int) -> int:
    """Return what the tally has, which only the engine's processes have open."""
    directory = f"/proc/{pid}/fd"
    with suppress(OSError):
        for name in os.listdir(directory):
            if re.search(f"{NAMELESS}|^/memfd:{TALLY}", os.readlink(f"{directory}/{name}")):
                with open(f"{directory}/{name}", "rb") as file:
                    return total(file.read())
    return 0


def _memory(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "Pss":
                return int(value.split()[0])
    return 0


def _groups(pid: int) -> str:
    """Return the control groups of a process, each once."""
    with suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        return " ".join(sorted({line.rstrip("\n").split(":", 2)[2] for line in file}))
    return ""
