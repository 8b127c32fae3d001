"""The index of one lease directory in a file, and the check that it is up to date.

The kernel sets the modification time of a directory whenever a name in it is created or removed.
Two changes within one tick of the kernel's clock would get the same time. So after a change of ours
the directory gets a random time of the past, which no later change leaves in place. The index gets
the same time plus a constant, as its last change. As long as the two times match, neither has been
changed: not by another program, and not by a call of ours that was killed half-way.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from cni_common.node.journal import make_private_directory, refuse_shared
from plugins.host_local.index.blocks import BLOCK, Header, Index, pods_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from cni_common.spec.names import Address

_APART_NS = 86_400_987_654_321  # never the distance of two of the kernel's own times
_PAST_NS = 10 * 10**9  # more than the coarsest resolution of a file system
_RANDOM_BYTES = 5  # 18 minutes, in nanoseconds
_COARSE_NS = 3 * 10**9
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_MODE = 0o600
_RUN_BLOCKS = 2048  # blocks read at once
_BITMAPS_MAX = 8192  # 32 MB of memory at most


@dataclass(frozen=True, slots=True)
class Remembered:
    """Data that a new index takes over from an old one, even from a stale one."""

    resting: Sequence[tuple[Address, int]] = ()  # addresses and the end of their rest
    booted_ns: int = 0  # as in Header; 0: unknown
    pods: Sequence[bytes] = ()  # for Index.add_pods


class IndexFile:
    """The index of the directory open as `directory`, below `root`; `disk` makes system calls.

    Methods that write need the directory's lock. Every method can raise OSError.
    """

    def __init__(self, directory: int, root: str, disk: Callable[..., Any] | None = None) -> None:
        self._directory = directory
        self._disk = disk or _call
        self._root = root
        status = os.fstat(directory)
        self.path = f"{root}/{status.st_dev:x}-{status.st_ino:x}"
        self._fd = -1

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def load(self) -> Index | None:
        """Return the index if it exists and matches the directory, else None."""
        header = self._open()
        if header is None or not self.is_fresh() or header.boot_id != boot_id():
            return None
        return Index(header, self._block)

    def is_fresh(self) -> bool:
        """Tell whether neither the directory nor the index was changed since `seal`."""
        if self._fd < 0:
            return False
        here, there = os.fstat(self._directory), os.fstat(self._fd)
        return there.st_mtime_ns == here.st_mtime_ns + _APART_NS

    def remembered(self) -> Remembered:
        """Return the data of the file that a new index keeps."""
        header = self._open()
        if header is None or header.boot_id != boot_id():
            return Remembered()
        index = Index(header, self._block)
        resting = index.resting(header.tail - header.head)
        pods = [pod for blocks in self._written(*header.table) for pod in pods_in(blocks)]
        return Remembered(resting, header.booted_ns, pods)

    def time_of_directory(self) -> int:
        """Return the directory's modification time, nanoseconds since the epoch."""
        return os.fstat(self._directory).st_mtime_ns

    def rebuild_lock(self) -> int:
        """Return a descriptor whose flock admits one process at a time to a rebuild."""
        self._disk(make_private_directory, self._root)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd: int = self._disk(os.open, self._root, flags)
        return fd

    def stamp(self) -> int:
        """Set the directory's modification time to a random past time, and return it.

        Any later change of the directory replaces that time.
        """
        past = int.from_bytes(os.urandom(_RANDOM_BYTES), "big") + _PAST_NS
        wanted = time.time_ns() - past
        self._disk(os.utime, self._directory, ns=(time.time_ns(), wanted))
        got = os.fstat(self._directory).st_mtime_ns
        if abs(got - wanted) > _COARSE_NS:
            raise OSError(errno.EOPNOTSUPP, "the file system keeps no times of ours", self._root)
        return got

    def save(self, index: Index, stamp: int) -> Index:
        """Replace the old index by a new one that matches the directory as of `stamp`."""
        return self.adopt(self.draft(index, "new"), stamp, "new")

    def draft(self, index: Index, suffix: str) -> Index:
        """Write a new index beside the old one. Needs no lock if the suffix is the caller's own."""
        self.close()
        self._disk(make_private_directory, self._root)
        new = f"{self.path}.{suffix}"
        _unlink(new)  # left by a killed call
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = self._disk(os.open, new, flags, _MODE)
        try:
            self._write(index)
        except BaseException:
            _unlink(new)
            raise
        return Index(index.header, self._block)

    def adopt(self, index: Index, stamp: int, suffix: str) -> Index:
        """Write the changes to a draft since, and replace the old index by it."""
        new = f"{self.path}.{suffix}"
        try:
            self._write(index)
            self._disk(os.replace, new, self.path)
        except BaseException:
            _unlink(new)
            raise
        self._finish(stamp)
        return index

    def seal(self, index: Index) -> None:
        """Write the changed blocks of `index`, and mark it as matching the directory now."""
        self._write(index)
        self._finish(self.stamp())

    def forget(self) -> None:
        """Remove the file, because it is wrong or cannot be written."""
        self.close()
        _unlink(self.path)

    def _finish(self, stamp: int) -> None:
        self._disk(os.utime, self._fd, ns=(time.time_ns(), stamp + _APART_NS))

    def _open(self) -> Header | None:
        if self._fd < 0:
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                refuse_shared(self._root)
                self._fd = self._disk(os.open, self.path, flags)
            except FileNotFoundError:
                return None
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            self.close()
            return None
        return Header.parse(self._disk(os.pread, self._fd, BLOCK, 0))

    def _written(self, block: int, end: int) -> Iterator[bytes]:
        """Yield the blocks up to `end` in runs, without holes, which make up most of a table."""
        while block < end:
            try:
                at = self._disk(os.lseek, self._fd, block * BLOCK, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data behind `block`
                    return
                raise
            hole = self._disk(os.lseek, self._fd, at, os.SEEK_HOLE)
            block, stop = at // BLOCK, min(-(-hole // BLOCK), end, at // BLOCK + _RUN_BLOCKS)
            if stop > block:
                yield self._disk(os.pread, self._fd, (stop - block) * BLOCK, block * BLOCK)
            block = max(stop, block + 1)

    def _block(self, number: int) -> bytes:
        data: bytes = self._disk(os.pread, self._fd, BLOCK, number * BLOCK)
        return data.ljust(BLOCK, b"\0")

    def _write(self, index: Index) -> None:
        if index.header.bitmaps > _BITMAPS_MAX:
            raise OSError(errno.EFBIG, "addresses are scattered too widely", self.path)
        blocks = {0: index.header.pack(), **index.written}
        for number, data in blocks.items():
            if self._disk(os.pwrite, self._fd, data, number * BLOCK) != BLOCK:
                raise OSError(errno.ENOSPC, "no space left for the index", self.path)
        index.written.clear()


def boot_id() -> bytes:
    """Return the kernel's boot id, 36 bytes; zeros if the kernel does not tell it."""
    try:
        return _boot_id()
    except OSError:
        return bytes(36)


@cache  # no process outlives its boot; a failure is not kept
def _boot_id() -> bytes:
    fd = os.open(_BOOT_ID, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 36).ljust(36, b"\0")
    finally:
        os.close(fd)


def booted_ns() -> int:
    """Return the beginning of this boot by the present clock, nanoseconds since the epoch."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _call(call: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    return call(*args, **kwargs)
