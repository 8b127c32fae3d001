"""Runs a program on the host from a container: in the host's namespaces, in a group of its own.

    python3 agent/on_host.py PROCESS LOG COMMAND [ARGUMENT...]

PROCESS is the process whose mount and cgroup namespaces the program gets, process 1 of a pod with
hostPID. LOG is a file of the host, to which the program's output is added. The program is detached:
this call ends at once, with status 0 when the program was forked.

The program leaves the control groups of the container: the runtime kills all that is in them when
the container ends. It holds none of the container's files open either, or the container would seem
to run on.

The module uses the standard library alone, as it runs in a process of its own: a process with
threads cannot enter a mount namespace (setns(2)).
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_CLONE_NEWNS, _CLONE_NEWCGROUP = 0x00020000, 0x02000000  # linux/sched.h
_SPACES = (("cgroup", _CLONE_NEWCGROUP), ("mnt", _CLONE_NEWNS))
GROUP = "pycni-engine"  # directory of the control groups, in the root of each hierarchy
# The frozen program has this codec loaded. Any other is a module in a file of the container, which
# cannot be opened once this process has entered the host's mount namespace.
_ENCODING = "utf-8"
_ENVIRON = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"}


def main(arguments: Sequence[str]) -> int:
    """Detach the command; return 1 with a line on stderr where that is not possible."""
    process, log, *command = arguments
    try:
        _enter(process)
        os.makedirs(os.path.dirname(log), 0o700, exist_ok=True)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        status = os.stat(command[0])
        if not status.st_mode & 0o111:
            raise PermissionError(13, "it cannot be executed", command[0])
    except OSError as error:
        sys.stderr.write(f"cannot start '{command[0]}' on the host: {error}\n")
        return 1
    if os.fork():
        return 0
    _become(command, output)
    return 1


def _become(command: Sequence[str], output: int) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, copy in ((null, 0), (output, 1), (output, 2)):
        os.dup2(fd, copy)
    for problem in leave_groups():
        os.write(2, f"{problem}\n".encode())
    os.closerange(3, 1 << 16)
    try:
        os.execve(command[0], list(command), _ENVIRON)
    except OSError as error:
        os.write(2, f"cannot execute '{command[0]}': {error.strerror}\n".encode())
    os._exit(1)


def _enter(process: str) -> None:
    """Enter the namespaces of a process, those that this one is not in already. Raises OSError."""
    opened = []
    for name, kind in _SPACES:
        path = f"/proc/{process}/ns/{name}"
        if not os.path.samefile(path, f"/proc/self/ns/{name}"):
            opened.append((os.open(path, os.O_RDONLY | os.O_CLOEXEC), kind))
    for fd, kind in opened:
        _setns(fd, kind)
        os.close(fd)
    os.chdir("/")


def _setns(fd: int, kind: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is new in Python 3.12
    if libc.setns(fd, kind):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


# --- control groups (cgroups(7)) ---


def leave_groups(own: str = "/proc/self/cgroup", mounts: str = "/proc/self/mountinfo") -> list[str]:
    """Move this process into groups of its own in each hierarchy; return what was not possible."""
    with open(own, encoding="utf-8") as file:
        lines = file.read().splitlines()  # whole first: it changes while this process moves
    with open(mounts, encoding="utf-8") as file:
        places = _hierarchies(file.read().splitlines())
    problems = []
    for line in lines:
        _, controllers, _ = line.split(":", 2)
        place = places.get(frozenset(controllers.split(",")) - {""})
        if place is None:
            continue  # a hierarchy that is not mounted: no runtime kills by it
        try:
            _move(f"{place}/{GROUP}")
        except OSError as error:
            problems.append(f"stays in the container's group of '{place}': {error.strerror}")
    return problems


def _hierarchies(lines: list[str]) -> dict[frozenset[str], str]:
    """Return the mount point of each hierarchy by its controllers, none for version 2 (proc(5)).

    Of several the first counts: nodes of kind mount groups of the kubelet on themselves, below it.
    """
    found: dict[frozenset[str], str] = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        place = before.split()[4]
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            found.setdefault(frozenset(), place)
        elif kind == "cgroup":
            words = set(options.split(",")) - {"rw", "ro"}
            found.setdefault(frozenset(word for word in words if not _is_option(word)), place)
    return found


def _is_option(word: str) -> bool:
    return word in ("xattr", "noprefix", "clone_children") or word.startswith("release_agent=")


def _move(group: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(group, 0o755)
    for name in ("cpuset.cpus", "cpuset.mems"):  # of version 1, where a new group may run nowhere
        _inherit(f"{os.path.dirname(group)}/{name}", f"{group}/{name}")
    with open(f"{group}/cgroup.procs", "w", encoding=_ENCODING) as file:
        file.write("0")


def _inherit(source: str, copy: str) -> None:
    with suppress(OSError):
        with open(source, encoding=_ENCODING) as file:
            value = file.read().strip()
        with open(copy, "r+", encoding=_ENCODING) as file:
            if not file.read().strip():
                file.seek(0)
                file.write(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
