"""The process at the other end of the daemon's socket: one of the node, or of a container.

A container's root is root as well, and reaches the socket where its directory is mounted into
the container. Such a root has a network namespace and a mount namespace of its own.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass

_CREDENTIALS = struct.Struct("=iII")  # struct ucred of unix(7): process, user, group
_SO_PEERPIDFD = 77  # asm-generic/socket.h, since Linux 6.5
_NAMESPACES = ("ns/net", "ns/mnt")  # below /proc/PID
_INIT = 1  # each process of its PID namespace has come from it
_PROCESS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Peer:
    """A process as the kernel has noted it when it connected, or began to listen."""

    pid: int  # in our PID namespace, 0: in none that is visible from here
    user: int


def peer_of(sock: socket.socket) -> Peer:
    """Return the process at the other end."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(data)[:2])


def stranger(sock: socket.socket) -> str:
    """Describe the peer if it is not to be believed; "" for a process of root of this node.

    Such a process has our network namespace or our mount namespace: a daemon in a container of its
    own has the former alone.
    """
    peer = peer_of(sock)
    if peer.user != 0:
        return f"a process of user {peer.user}"
    if peer.pid == _INIT:  # systemd, which opens the socket; it may have more rights than we have
        return ""
    if peer.pid == 0:
        return "a process of another PID namespace, which cannot be seen from here,"
    try:
        process = _opened(sock, peer.pid)
    except OSError as error:
        return f"a process that cannot be looked at ({error.strerror})"
    try:
        if any(os.path.samestat(*_both(name, process)) for name in _NAMESPACES):
            return ""
    except OSError as error:
        return f"a process that cannot be looked at ({error.strerror})"
    finally:
        os.close(process)
    return "a process of a container"


def _both(name: str, process: int) -> tuple[os.stat_result, os.stat_result]:
    return os.stat(f"/proc/self/{name}"), os.stat(name, dir_fd=process)


def _opened(sock: socket.socket, pid: int) -> int:
    """Return a descriptor of the peer's directory in /proc. Raises OSError if it has ended.

    Its number may be another process's by now, which a kernel before 6.5 cannot tell.
    """
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return os.open(f"/proc/{pid}", _PROCESS)
    try:
        process = os.open(f"/proc/{pid}", _PROCESS)
        if not _is_alive(pidfd, pid):  # after it was opened: a number is reused after its end
            os.close(process)
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return process
    finally:
        os.close(pidfd)


def _is_alive(pidfd: int, pid: int) -> bool:
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return f"Pid:\t{pid}\n" in file
