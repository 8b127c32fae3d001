"""The processes that have sockets, by their files below /proc."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_SECONDS = 0.5  # for all of it: a node may have thousands of processes
_SOCKET = "socket:["


def of(inodes: Collection[int], netns: int) -> dict[int, tuple[int, str]]:
    """Return process id and name by the inode of a socket, of those that are found in time.

    `netns` is a descriptor of the sockets' namespace: its processes are looked at first.
    """
    found: dict[int, tuple[int, str]] = {}
    left = set(inodes)
    until = time.monotonic() + _SECONDS
    for pid in _processes(netns):
        if not left or time.monotonic() > until:
            break
        for inode in _sockets(pid) & left:
            found[inode] = pid, _name(pid)
            left.remove(inode)
    return found


def _processes(netns: int) -> list[int]:
    """Return all processes, those of the namespace before the others."""
    place = os.fstat(netns)
    inside: list[int] = []
    others: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            try:
                status = os.stat(f"/proc/{name}/ns/net")
            except OSError:  # it has ended
                continue
            (inside if os.path.samestat(status, place) else others).append(int(name))
    return inside + others


def _sockets(pid: int) -> set[int]:
    with suppress(OSError):
        return set(_inodes(f"/proc/{pid}/fd"))
    return set()


def _inodes(directory: str) -> Iterator[int]:
    for name in os.listdir(directory):
        with suppress(OSError):  # it was closed
            target = os.readlink(f"{directory}/{name}")
            if target.startswith(_SOCKET):
                yield int(target[len(_SOCKET) : -1])


def _name(pid: int) -> str:
    with suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().rstrip("\n")
    return ""
