"""The leases of one network on disk, in the layout of the Go implementation.

A directory with one file per address, named after it and holding "containerid CR LF ifname";
`lock`, on which every writer holds an exclusive flock; and `last_reserved_ip.<i>`, the address
behind which the search in range set i goes on. The Go plugin may be at work in the same
directory at any time: it reads every file in it, so none of ours may mislead it.

These files are the truth. An index outside of the directory says where to look: what it says of
an owner or of a free address is verified by a look at that lease, and what others have changed
makes it be made anew.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from cni_common.node.record import make_directory
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import Address, parse_address
from plugins.host_local.index.lookup import Catalog
from plugins.host_local.lease import Lease, address_of, owner_in, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import ParamSpec, Self, TypeVar

    from cni_common.node.host import Host
    from cni_common.spec.request import Attachment
    from plugins.host_local.ranges import RangeSet

    P = ParamSpec("P")
    T = TypeVar("T")

LEASE_BYTES_MAX = 1 << 18  # more than CNI_CONTAINERID can hold

_LOCK = "lock"
_LAST_RESERVED = "last_reserved_ip."
# No address looks like these, and no container id can begin with a dot.
_OURS = ".pycni-"
_NEW = f"{_OURS}new"
_MODE = 0o600
_DIRECTORY_MODE = 0o755  # as the Go plugin makes it
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
LARGE_BYTES = 32_768  # of the directory itself: beyond a thousand leases, on any file system
_TRIES = 3  # at an index that others put out of date meanwhile
# What says "this file cannot be a lease", and not "this process cannot read".
_FOREIGN = frozenset({errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM, errno.EIO})


def indexes_of(host: Host) -> str:
    """Return the directory of the indexes: a reboot empties it, and no plugin walks it."""
    return f"{host.state_dir}/indexes"


class Store:
    """The lease directory of one network, open inside a `with` block.

    Every verb from `held_by` on wants the lock, which the end of the block gives back. An
    OSError that leaves the block becomes a CNIError 5 that names the directory. A directory
    that does not exist has no leases, unless `create` makes it.
    """

    def __init__(
        self,
        directory: str,
        *,
        create: bool = False,
        indexes: str = "",
        capacity: int = 0,
        log: Callable[[str], object] = lambda _: None,
    ) -> None:
        """`indexes` is where indexes are kept; a new one has room for `capacity` leases."""
        self.directory = directory
        self._create = create
        self._indexes = indexes
        self._capacity = capacity
        self._log = log
        self._dir = -1
        self._lock = -1
        self._catalog: Catalog | None = None
        self._changed = False  # the directory, by this call
        self._in_step = True  # the index with the directory
        self._littered = False  # with what only a look at the whole directory will find

    def __enter__(self) -> Self:
        try:
            if self._create:
                self.disk(make_directory, self.directory, _DIRECTORY_MODE)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self._dir = self.disk(os.open, self.directory, flags)
        except OSError as error:
            if self._create or error.errno != errno.ENOENT:
                raise self._failure(error) from error
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            if self._catalog:
                seal = self._in_step and not self._littered
                self._catalog.close(seal=seal, changed=self._changed)
        finally:
            for fd in (self._lock, self._dir):
                if fd >= 0:
                    os.close(fd)
            self._lock = self._dir = -1
        if isinstance(error, OSError):
            raise self._failure(error) from error

    def lock(self, *, for_index: bool = True) -> Self:
        """Wait until nobody else, the Go plugin included, is at work in the directory.

        Where the index of a large directory is out of date, it is made anew before that; without
        `for_index` nobody asks it.
        """
        if self._dir < 0:
            return self
        try:
            # Not O_RDONLY: a directory, which the Go plugin cannot lock, could be opened by it.
            self._lock = self.disk(os.open, _LOCK, _READ | os.O_RDWR, dir_fd=self._dir)
        except FileNotFoundError:
            # Perhaps there is no room for a lock, and never was: then there is nothing of ours.
            if not self._create and not any(
                name.startswith(_OURS) or address_of(name) for name in self._names()
            ):
                os.close(self._dir)
                self._dir = -1
                return self
            self._lock = self.disk(os.open, _LOCK, _READ | os.O_CREAT, _MODE, dir_fd=self._dir)
        self.relock()
        if for_index and self.disk(os.fstat, self._dir).st_size > LARGE_BYTES:
            self._opened_catalog().renew(self)
        return self

    def unlock(self) -> None:
        """Let others have the lock, until `relock`."""
        self.disk(fcntl.flock, self._lock, fcntl.LOCK_UN)

    def relock(self) -> None:
        """Wait for the lock, whose file is open."""
        self.disk(fcntl.flock, self._lock, fcntl.LOCK_EX)

    def leases(self) -> list[Lease]:
        """Return all leases, by one pass; with the lock, remove what a killed call left behind."""
        found = []
        for name in self._names():
            address = address_of(name)
            if address is not None:
                lease = self.lease(address)
                if lease is not None:
                    found.append(lease)
            elif self._lock >= 0:
                self.tidy((name,))
        return found

    def inodes(self) -> dict[str, int]:
        """Return the inode of each name in the directory, by one pass. Needs no lock."""
        with self.disk(os.scandir, self._dir) as entries:
            return {entry.name: entry.inode() for entry in entries}

    def tidy(self, names: Iterable[str]) -> None:
        """Remove those of `names` that a killed call left behind."""
        for name in names:
            if name.startswith(_OURS):
                self._remove(name)

    def lease(self, address: Address) -> Lease | None:
        """Return the lease of `address`, None when it is free."""
        if self._dir < 0:
            return None
        try:
            fd = self.disk(os.open, str(address), _READ, dir_fd=self._dir)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _FOREIGN:
                return Lease(address, None)
            raise
        try:
            return self._read_lease(address, fd)
        finally:
            os.close(fd)

    def held_by(self, owner: Attachment) -> list[Lease]:
        """Return the leases of `owner`, those without ifname included."""
        if self._dir < 0:
            return []
        catalog = self._opened_catalog()
        for _ in range(_TRIES):
            leases = [self.lease(address) for address in catalog.addresses_of(owner)]
            held = [lease for lease in leases if lease is not None and lease.is_of(owner)]
            if len(held) == len(leases):
                break
            catalog.rebuild()  # somebody has rewritten a lease in place
        return held

    def held_by_pod(self, pod: str) -> list[Lease]:
        """Return leases that may be of attachments of `pod`; their records know."""
        if self._dir < 0 or not pod:
            return []
        leases = [self.lease(address) for address in self._opened_catalog().addresses_of_pod(pod)]
        return [lease for lease in leases if lease is not None and lease.owner is not None]

    def next_free(self, range_set: RangeSet, after: Address | None) -> Address | None:
        """Return the next free address of `range_set` behind `after`, None when there is none.

        One that rests after its release is taken only when there is no other.
        """
        address = None
        catalog = self._opened_catalog()
        for _ in range(_TRIES):
            address = catalog.next_free(range_set, after)
            if address is None or self.lease(address) is None:
                break
            catalog.rebuild()
        return address

    def booted_ns(self) -> int:
        """Return the earliest time of this boot that the clock has ever told, since the epoch."""
        return self._opened_catalog().booted_ns() if self._dir >= 0 else 0

    def forget_index(self) -> None:
        """Have the next call that needs the index rebuild it: the leases contradict it."""
        if self._dir >= 0:
            self._opened_catalog().forget()

    def claim(
        self, address: Address, owner: Attachment, *, pod: str = "", replace: Lease | None = None
    ) -> None:
        """Give `address` to `owner`: its file appears at once with its content.

        `replace` is the lease whose place it takes. Otherwise an existing file raises
        FileExistsError, even when its maker disregards the lock.
        """
        catalog = self._begin()
        self._write_new(text_of(owner))
        try:
            if replace:
                self.disk(
                    os.replace, _NEW, str(address), src_dir_fd=self._dir, dst_dir_fd=self._dir
                )
            else:
                self.disk(
                    os.link,
                    _NEW,
                    str(address),
                    src_dir_fd=self._dir,
                    dst_dir_fd=self._dir,
                    follow_symlinks=False,
                )
        finally:
            self._discard_new()
        catalog.taken(address, owner, pod, replace)
        self._in_step = True

    def release(self, lease: Lease, *, pod: str = "", rest_seconds: int = 0) -> None:
        """Free the address of `lease`; it may be free already. It rests for `rest_seconds`."""
        if self._dir < 0:
            return
        catalog = self._begin()
        self._remove(str(lease.address))
        catalog.freed(lease, pod, rest_seconds)
        self._in_step = True

    def last_reserved(self, index: int) -> Address | None:
        """Return where the search in range set `index` ended last time, None if unknown."""
        try:
            fd = self.disk(os.open, f"{_LAST_RESERVED}{index}", _READ, dir_fd=self._dir)
        except OSError:
            return None  # only the order of the addresses depends on it
        try:
            return parse_address(self.disk(os.read, fd, 64).decode("ascii"))
        except (OSError, ValueError):
            return None
        finally:
            os.close(fd)

    def set_last_reserved(self, index: int, address: Address) -> None:
        """Remember where the search in range set `index` ended, all of it or nothing."""
        name, text = f"{_LAST_RESERVED}{index}", str(address)
        if self._overwrite(name, text.encode()):
            return
        self._write_new(text)
        try:
            self.disk(os.replace, _NEW, name, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        finally:
            self._discard_new()

    def _begin(self) -> Catalog:
        """Return the index, read before a lease is changed, and until then out of step with it."""
        catalog = self._opened_catalog()
        catalog.open()
        self._in_step = False
        return catalog

    def _opened_catalog(self) -> Catalog:
        if self._catalog is None:
            self._catalog = Catalog.at(self, self._indexes, log=self._log, capacity=self._capacity)
        return self._catalog

    @property
    def descriptor(self) -> int:
        """The open directory, -1 when there is none."""
        return self._dir

    def disk(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        # Every call that can fail passes here, so that a test can make each of them fail.
        return call(*args, **kwargs)

    def _failure(self, error: OSError) -> CNIError:
        name = f" ({error.filename})" if error.filename not in (None, self.directory) else ""
        return CNIError(
            Code.IO_FAILURE,
            f"cannot use the lease directory '{self.directory}': {error.strerror}{name}",
        )

    def _names(self) -> list[str]:
        return self.disk(os.listdir, self._dir) if self._dir >= 0 else []

    def _read_lease(self, address: Address, fd: int) -> Lease:
        status = self.disk(os.fstat, fd)
        inode, since = status.st_ino, status.st_mtime_ns
        if not stat.S_ISREG(status.st_mode) or status.st_size > LEASE_BYTES_MAX:
            return Lease(address, None, since, inode)
        try:
            data = self.disk(os.read, fd, status.st_size) if status.st_size else b""
        except OSError as error:
            if error.errno in _FOREIGN:
                return Lease(address, None, since, inode)
            raise
        owner = owner_in(data)
        return Lease(address, owner, since, inode, reclaimable=owner is None)

    def _write_new(self, text: str) -> None:
        flags = _WRITE | os.O_EXCL
        self._changed = True
        try:
            fd = self.disk(os.open, _NEW, flags, _MODE, dir_fd=self._dir)
        except FileExistsError:
            # Of a killed call. It may be a second name of a live lease: never truncate it.
            self._remove(_NEW)
            fd = self.disk(os.open, _NEW, flags, _MODE, dir_fd=self._dir)
        try:
            try:
                self._write_all(fd, os.fsencode(text))
            finally:
                self.disk(os.close, fd)  # where NFS tells that the disk is full
        except BaseException:
            self._discard_new()
            raise

    def _overwrite(self, name: str, data: bytes) -> bool:
        """Write `data` over a file of the same length; return False when it has another one.

        One write of that length is as atomic as a rename, but does not make ext4 flush the
        file: the rename would take longer than all the rest of an ADD.
        """
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = self.disk(os.open, name, flags, dir_fd=self._dir)
        except OSError:
            return False
        try:
            status = self.disk(os.fstat, fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size != len(data):
                return False
            self._write_all(fd, data)
        finally:
            os.close(fd)
        return True

    def _write_all(self, fd: int, data: bytes) -> None:
        # No fsync: see "Files on disk" in docs/plugins/host-local.md.
        if self.disk(os.write, fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _discard_new(self) -> None:
        try:
            self._remove(_NEW)
        except OSError:
            self._littered = True  # the next call removes it; the lease is complete, or never was

    def _remove(self, name: str) -> None:
        self._changed = True
        try:
            self.disk(os.unlink, name, dir_fd=self._dir)
        except FileNotFoundError:
            return
