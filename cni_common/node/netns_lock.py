"""A lock on one network namespace, for calls that choose something in it."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING

from cni_common.node.journal import SharedDirectoryError, make_private_directory
from cni_common.node.record import EXHAUSTED
from cni_common.spec.steps import CALL, LOCK, now

if TYPE_CHECKING:
    from cni_common.kernel.netns import NetNS

_FILE = "netns.lock"
_F_OFD_SETLKW = 38  # asm-generic/fcntl.h; of the open file, not of the process
_FLOCK = struct.Struct("@hhqqi0q")  # struct flock: type, whence, start, length, process


class NetnsLock:
    """Keeps other calls out of what they lock likewise in one namespace, for a `with`.

    The lock is the byte at the namespace's inode number of one file that all namespaces share. A
    file of the namespace itself could be locked by any process of the container, too, and for ever.
    """

    def __init__(self, state_dir: str, netns: NetNS) -> None:
        self._directory = state_dir
        self._netns = netns
        self._fd = -1

    def __enter__(self) -> None:
        """Wait for the lock. Raises OSError."""
        try:
            make_private_directory(self._directory)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._fd = os.open(f"{self._directory}/{_FILE}", flags, 0o600)
        except OSError as error:
            if isinstance(error, SharedDirectoryError) or error.errno in EXHAUSTED:
                raise
            return  # without a record no call makes what this keeps others out of
        try:
            inode = os.fstat(self._netns.fd).st_ino
            since = now()
            fcntl.fcntl(self._fd, _F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, 0, inode, 1, 0))
            CALL.note(LOCK, since)
        except BaseException:  # SIGTERM's too
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
