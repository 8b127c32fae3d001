"""Runs a program on the host from a container: in the host's namespaces, in a group of its own.

    python3 -m agent.on_host PROCESS LOG COMMAND [ARGUMENT...]

PROCESS is the process whose mount and cgroup namespaces the program gets, process 1 of a pod with
hostPID. LOG is a file of the host, to which the program's output is added. The program is detached:
this call ends at once, with status 0 when the program was forked.

The program leaves the control groups of the container: the runtime kills all that is in them when
the container ends. The program holds none of the container's files open either, or the container
would seem to run on.

    python3 -m agent.on_host --remove-groups PROCESS

removes these control groups, once nothing runs in them.

This command runs in a process of its own: a process with threads cannot enter a mount namespace
(setns(2)).
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import TYPE_CHECKING

from cni_common.kernel.cgroups import leave_groups, remove_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

_CLONE_NEWNS, _CLONE_NEWCGROUP = 0x00020000, 0x02000000  # linux/sched.h
REMOVE_GROUPS = "--remove-groups"
_END_SECONDS = 2.0  # that workers of the engine may take to end
_SPACES = (("cgroup", _CLONE_NEWCGROUP), ("mnt", _CLONE_NEWNS))
_ENVIRON = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"}


def main(arguments: Sequence[str]) -> int:
    """Detach the command; return 1 with a line on stderr where that is not possible."""
    if arguments[0] == REMOVE_GROUPS:
        return _remove_groups(arguments[1])
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


def _remove_groups(process: str) -> int:
    try:
        _enter(process)
        until = time.monotonic() + _END_SECONDS
        while (stay := remove_groups()) and time.monotonic() < until:
            time.sleep(0.05)
    except OSError as error:
        sys.stderr.write(f"the engine's control groups stay: {error}\n")
        return 1
    for one in stay:
        sys.stderr.write(f"the control group '{one}' stays, as processes are in it\n")
    return 1 if stay else 0


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
