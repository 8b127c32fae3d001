"""Directories that others may change: inotify(7) wakes the loop when they do."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_CLOEXEC = os.O_CLOEXEC  # IN_CLOEXEC of sys/inotify.h
# IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF,
# IN_MOVE_SELF; and IN_ONLYDIR
_EVENTS = 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800 | 0x01000000
_READ_BYTES = 1 << 16
_PAUSE_SECONDS = 0.2  # between two wake-ups: a directory that changes all the time costs little


class Directories:
    """Watches directories in a thread; a directory that is not there yet is tried again."""

    def __init__(self, paths: Iterable[Path], wake: Callable[[str], None]) -> None:
        """Raises OSError where the kernel gives no more inotify instances."""
        self._paths = sorted(set(paths))
        self._wake = wake
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            remedy = "raise the sysctl fs.inotify.max_user_instances"
            raise OSError(number, f"inotify: {os.strerror(number)}; {remedy}")
        self.ensure()
        threading.Thread(target=self._run, name="directories", daemon=True).start()

    def ensure(self) -> None:
        """Watch all directories; one that was made anew as well."""
        for path in self._paths:
            self._libc.inotify_add_watch(self._fd, os.fsencode(path), _EVENTS)

    def _run(self) -> None:
        while True:
            os.read(self._fd, _READ_BYTES)  # which files does not matter: the loop looks at all
            self._wake("files")
            time.sleep(_PAUSE_SECONDS)
