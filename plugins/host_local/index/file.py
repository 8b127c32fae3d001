"""The index of one lease directory in a file, and how it is known to be up to date.

Whoever creates or removes a name in a directory makes the kernel set its modification time. So
that two changes within one tick of the kernel's clock differ too, the time is not compared with
one that the kernel gave: after a change of ours the directory gets a random time of the past,
which no later change can leave in place. The index gets the same time plus a constant, as the
last thing that is done to it. As long as the two fit, nobody has changed either of them: no
other program, and no call of ours that was killed half-way.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.node.record import make_private_directory, refuse_shared
from plugins.host_local.index.blocks import BLOCK, Header, Index, pods_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from cni_common.spec.names import Address

_APART_NS = 86_400_987_654_321  # the kernel's own times of one call are never that far apart
_PAST_NS = 10 * 10**9  # more than the coarsest time of any file system
_RANDOM_BYTES = 5  # 18 minutes, in nanoseconds
_COARSE_NS = 3 * 10**9
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_MODE = 0o600
_RUN_BLOCKS = 2048  # that are read at once
_BITMAPS_MAX = 8192  # 32 MB of memory at most


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a new index takes over from an old one, even if that is out of date."""

    resting: Sequence[tuple[Address, int]] = ()  # addresses and the end of their rest
    booted_ns: int = 0  # the earliest time of boot that the clock has told; 0: unknown
    pods: Sequence[bytes] = ()  # as Index.add_pods wants them


class IndexFile:
    """The index of the directory open as `directory`, below `root`; `disk` makes the calls.

    All that changes something wants the directory's lock. Everything can raise OSError.
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
        """Return the index if it is there and fits the directory."""
        header = self._open()
        if header is None or not self.is_fresh() or header.boot_id != boot_id():
            return None
        return Index(header, self._block)

    def is_fresh(self) -> bool:
        """Tell whether nobody has changed the directory, nor the index, since `seal`."""
        if self._fd < 0:
            return False
        here, there = os.fstat(self._directory), os.fstat(self._fd)
        return there.st_mtime_ns == here.st_mtime_ns + _APART_NS

    def remembered(self) -> Remembered:
        """Return what the file still knows."""
        header = self._open()
        if header is None or header.boot_id != boot_id():
            return Remembered()
        index = Index(header, self._block)
        resting = index.resting(header.tail - header.head)
        pods = [pod for blocks in self._written(*header.table) for pod in pods_in(blocks)]
        return Remembered(resting, header.booted_ns, pods)

    def time_of_directory(self) -> int:
        """Return when the directory was last changed, nanoseconds; after `stamp`, that time."""
        return os.fstat(self._directory).st_mtime_ns

    def alone(self) -> int:
        """Return a descriptor whose flock is for one process that makes an index anew."""
        self._disk(make_private_directory, self._root)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd: int = self._disk(os.open, self._root, flags)
        return fd

    def stamp(self) -> int:
        """Give the directory a time that no change of others leaves in place, and return it."""
        past = int.from_bytes(os.urandom(_RANDOM_BYTES), "big") + _PAST_NS
        wanted = time.time_ns() - past
        self._disk(os.utime, self._directory, ns=(time.time_ns(), wanted))
        got = os.fstat(self._directory).st_mtime_ns
        if abs(got - wanted) > _COARSE_NS:
            raise OSError(errno.EOPNOTSUPP, "the file system keeps no times of ours", self._root)
        return got

    def save(self, index: Index, stamp: int) -> Index:
        """Write a new index in place of the old one; it fits the directory as of `stamp`."""
        return self.adopt(self.draft(index, "new"), stamp, "new")

    def draft(self, index: Index, suffix: str) -> Index:
        """Write a new index beside the old one. Needs no lock if nobody else has the suffix."""
        self.close()
        self._disk(make_private_directory, self._root)
        new = f"{self.path}.{suffix}"
        _unlink(new)  # of a killed call
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = self._disk(os.open, new, flags, _MODE)
        try:
            self._write(index)
        except BaseException:
            _unlink(new)
            raise
        return Index(index.header, self._block)

    def adopt(self, index: Index, stamp: int, suffix: str) -> Index:
        """Put a draft, and what changed in it since, in place of the old index."""
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
        """Write what changed in `index`, and state that it fits the directory as it is now."""
        self._write(index)
        self._finish(self.stamp())

    def forget(self) -> None:
        """Remove the file: it is wrong, or cannot be written."""
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
        """Yield the blocks up to `end` in runs, but for holes, which are most of a table."""
        while block < end:
            try:
                at = self._disk(os.lseek, self._fd, block * BLOCK, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data behind
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
    """Return what no other boot of this node has, zeros where the kernel does not tell."""
    try:
        fd = os.open(_BOOT_ID, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return bytes(36)
    try:
        return os.read(fd, 36).ljust(36, b"\0")
    finally:
        os.close(fd)


def booted_ns() -> int:
    """Return when this boot began, nanoseconds since the epoch, by the clock as it is now."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _call(call: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    return call(*args, **kwargs)
