"""Functions that run in namespaces of their own, which end with them."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

from commands.verb import RefusedError

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Sequence
    from typing import Any

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
_MS_REC_PRIVATE = 1 << 14 | 1 << 18  # MS_REC | MS_PRIVATE of linux/mount.h


def run(function: Callable[[], Any]) -> Any:
    """Return what `function` returns in a process with network and mounts of its own.

    The value passes as JSON. Raises RefusedError with the words of any exception in there, and
    where the kernel or the user's rights do not allow such a process.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(function, writing)
    os.close(writing)
    try:
        with open(reading, "rb") as pipe:
            data = pipe.read()
    except BaseException:  # an interrupt: the child must not go on
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.waitpid(pid, 0)
    if not data:
        raise RefusedError("the process in namespaces of its own was killed")
    answer = json.loads(data)
    if "error" in answer:
        raise RefusedError(answer["error"])
    return answer["value"]


def _child(function: Callable[[], Any], writing: int) -> None:
    """Run the function, write the answer, end."""
    try:
        enter()
        answer = {"value": function()}
    except BaseException as error:  # noqa: BLE001 - it is told to the parent
        answer = {"error": " ".join(f"{error}".split()) or type(error).__name__}
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(writing, data) :]
    os._exit(0)


def enter() -> None:
    """Move this process, which has one thread, into new namespaces. Raises OSError."""
    _call("unshare", CLONE_NEWNS | CLONE_NEWNET)
    _call("mount", None, b"/", None, _MS_REC_PRIVATE, None)


def mount_tmpfs(path: str) -> None:
    """Cover a directory of this mount namespace by an empty one. Raises OSError."""
    _call("mount", b"none", os.fsencode(path), b"tmpfs", 0, None)


def bind(source: str, target: str) -> None:
    """Show `source` at `target`, too, in this mount namespace. Raises OSError."""
    _call("mount", os.fsencode(source), os.fsencode(target), None, 1 << 12, None)  # MS_BIND


def mount_sysfs() -> None:
    """Have /sys show the interfaces of this network namespace. Raises OSError."""
    _call("mount", b"none", b"/sys", b"sysfs", 0, None)


def unshare_network() -> None:
    """Give the calling thread another new network namespace. Raises OSError."""
    _call("unshare", CLONE_NEWNET)


def return_to(fd: int) -> None:
    """Give the calling thread a network namespace back. Raises OSError."""
    _call("setns", fd, CLONE_NEWNET)


def _call(name: str, *arguments: Any) -> None:
    import ctypes

    libc: ctypes.CDLL = ctypes.CDLL(None, use_errno=True)
    values: Sequence[Any] = [
        ctypes.c_ulong(one) if name == "mount" and isinstance(one, int) else one
        for one in arguments
    ]
    if getattr(libc, name)(*values):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
