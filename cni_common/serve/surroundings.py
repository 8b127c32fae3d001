"""The surroundings of a process: its network and mount namespaces and its root directory."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from cni_common.kernel.netns import FIRST_PID_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A process that differs in one of these (below /proc/PID) sees another network or other files.
_SURROUNDINGS = ("ns/net", "ns/mnt", "root")
_RIGHTS = (b"CapBnd", b"CapEff", b"NoNewPrivs", b"Seccomp")
# Of linux/nsfs.h: the kernel's first namespaces. Before 6.17 those of mounts and network have other
# numbers, which differ from boot to boot.
_FIRST = {"pid": FIRST_PID_NAMESPACE, "user": 0xEFFFFFFD, "mnt": 0xEFFFFFF8, "net": 0xEFFFFFF9}
_STATUS_MAX = 1 << 14  # bytes: it has 1,500, and more with many groups of the user
PROCESS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def opened(process: str) -> Iterator[int]:
    """Open a directory of /proc, which never shows a later process with the same id."""
    fd = os.open(process, PROCESS)
    try:
        yield fd
    finally:
        os.close(fd)


def surroundings(process: int) -> Sequence[tuple[int, int]]:
    """Return the identities of a process's namespaces and root. Raises OSError if it has ended."""
    found = [os.stat(name, dir_fd=process) for name in _SURROUNDINGS]
    return [(status.st_dev, status.st_ino) for status in found]


def are_of_a_node() -> bool:
    """Tell whether this process sees what process 1 of its PID namespace sees.

    So do the programs of the machine itself, and those of a container that is itself a node, as
    kind's are. An engine left behind there ends with process 1, and keeps nothing alive beyond it.
    In a namespace that a test or a program has made beside process 1, and in a chroot, this is
    False. The answer is False, too, where this process has fewer rights: an engine left behind
    would serve others that have more.
    """
    if os.readlink("/proc/self") != str(os.getpid()):  # /proc is that of another PID namespace
        return False
    with opened("/proc/self") as own, opened("/proc/1") as first:
        return _sees_the_same(own, first) and _may_as_much(own, first)


def _sees_the_same(own: int, first: int) -> bool:
    """Tell whether a process has the surroundings of process 1. Raises OSError."""
    try:
        users = [os.stat("ns/user", dir_fd=process).st_ino for process in (own, first)]
        return users[0] == users[1] and surroundings(own) == surroundings(first)
    except PermissionError:  # on some machines process 1 has more rights than all others
        return all(os.stat(f"ns/{kind}", dir_fd=own).st_ino == n for kind, n in _FIRST.items())


def _may_as_much(own: int, first: int) -> bool:
    """Tell whether a process has the rights that process 1 hands on. Raises OSError."""
    ours, theirs = _rights(own), _rights(first)
    missing = theirs["CapBnd"] & ~ours["CapEff"]
    same = ("NoNewPrivs", "Seccomp")
    return not missing and all(ours.get(name) == theirs.get(name) for name in same)


def _rights(process: int) -> dict[str, int]:
    """Return of a process what proc_pid_status(5) says in hexadecimal or decimal numbers."""
    fd = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    try:
        lines = os.read(fd, _STATUS_MAX).splitlines()
    finally:
        os.close(fd)
    rows = (line.partition(b":\t") for line in lines)
    return {name.decode(): int(value, 16) for name, _, value in rows if name in _RIGHTS}


class Company:
    """Another process in this network namespace, whose end is an event.

    In a container process 1 is none: it may wait for the very process that asks. On the machine it
    never ends.
    """

    def __init__(self) -> None:
        self.fd = -1  # a pidfd: readable once that process has ended; -1 while there is none
        self._pid = 0
        self._own = os.stat("/proc/self/ns/net")
        self._session = os.getsid(0)
        is_machine = os.stat("/proc/self/ns/pid").st_ino == FIRST_PID_NAMESPACE
        self._first = 1 if is_machine else 2  # process id from which on processes count

    def is_there(self) -> bool:
        """Look for company, first where there was some; return whether there is any."""
        if self.fd >= 0:
            if self._is_here(self._pid) and not self._has_ended():
                return True
            os.close(self.fd)
            self.fd = -1
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
            if pid >= self._first and self._is_here(pid) and self._follow(pid):
                return True
        return False

    def _is_here(self, pid: int) -> bool:
        """Tell whether a process of another session is in the namespace."""
        try:
            is_other = os.getsid(pid) != self._session
            return is_other and os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), self._own)
        except PermissionError:
            return pid == 1 and self._own.st_ino == _FIRST["net"]
        except OSError:
            return False  # it ended meanwhile

    def _follow(self, pid: int) -> bool:
        with suppress(OSError):
            self.fd, self._pid = os.pidfd_open(pid), pid
            return not self._has_ended()
        return False

    def _has_ended(self) -> bool:
        import select

        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return bool(poller.poll(0))
