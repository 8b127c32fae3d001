"""The leases of one network on disk, in the layout of the Go implementation.

The directory has one file per address, named after it, with the content "containerid CR LF ifname";
`lock`, on which every writer holds an exclusive flock; and `last_reserved_ip.<i>`, the address
behind which the search in range set i continues. The Go plugin may work in the same directory at
any time. That plugin reads every file in the directory, so no file of ours may mislead it.

These files are the truth. An index outside of the directory leads to them: a call verifies each
answer of the index by reading that lease, and rebuilds the index after other programs changed the
leases.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from cni_common.node.journal import make_directory
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import Address, parse_address
from cni_common.spec.steps import CALL, LOCK, now
from plugins.host_local.index.lookup import Lookup
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
# No address has such a name, and no container id can begin with a dot.
_OURS = ".pycni-"
_NEW = f"{_OURS}new"
_MODE = 0o600
_DIRECTORY_MODE = 0o755  # as the Go plugin makes it
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
LARGE_BYTES = 32_768  # size of the directory itself: over a thousand leases, on any file system
_TRIES = 3  # attempts with an index that other programs make stale meanwhile
# Errors that mean "this file is no lease", not "this process cannot read".
_FOREIGN = frozenset({errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM, errno.EIO})


def indexes_of(host: Host) -> str:
    """Return the directory of the indexes: emptied by a reboot, not read by the Go plugin."""
    return f"{host.state_dir}/indexes"


class Store:
    """The lease directory of one network, open inside a `with` block.

    Every method from `held_by` on needs the lock, which the end of the block releases. An OSError
    that leaves the block becomes a CNIError 5 that names the directory. A missing directory counts
    as empty, unless `create` makes it.
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
        """`indexes` is the directory of indexes; a new index has room for `capacity` leases."""
        self.directory = directory
        self._create = create
        self._indexes = indexes
        self._capacity = capacity
        self._log = log
        self._dir = -1
        self._lock = -1
        self._lookup: Lookup | None = None
        self._changed = False  # whether this call has changed the directory
        self._in_step = True  # whether the index agrees with the directory
        self._littered = False  # whether a temporary file is left, which only a full scan finds

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
            if self._lookup:
                seal = self._in_step and not self._littered
                self._lookup.close(seal=seal, changed=self._changed)
        finally:
            for fd in (self._lock, self._dir):
                if fd >= 0:
                    os.close(fd)
            self._lock = self._dir = -1
        if isinstance(error, OSError):
            raise self._failure(error) from error

    def lock(self, *, for_index: bool = True) -> Self:
        """Wait for the lock, which excludes every other writer, the Go plugin included.

        A stale index of a large directory is rebuilt before that, unless `for_index` is false: then
        the caller does not use the index.
        """
        if self._dir < 0:
            return self
        try:
            # Not O_RDONLY: that could open a directory, which the Go plugin cannot lock.
            self._lock = self.disk(os.open, _LOCK, _READ | os.O_RDWR, dir_fd=self._dir)
        except FileNotFoundError:
            # A full disk may never have had room for a lock file: then there are no leases.
            if not self._create and not any(
                name.startswith(_OURS) or address_of(name) for name in self._names()
            ):
                os.close(self._dir)
                self._dir = -1
                return self
            self._lock = self.disk(os.open, _LOCK, _READ | os.O_CREAT, _MODE, dir_fd=self._dir)
        self.relock()
        if for_index and self.disk(os.fstat, self._dir).st_size > LARGE_BYTES:
            self._renew()
        return self

    def _renew(self) -> None:
        """Rebuild a stale index, mostly without the lock."""
        lookup = self._opened_lookup()
        if lookup.is_stale():
            from plugins.host_local.index import rebuild

            rebuild.renew(self, lookup)

    def unlock(self) -> None:
        """Release the lock until `relock`."""
        self.disk(fcntl.flock, self._lock, fcntl.LOCK_UN)

    def relock(self) -> None:
        """Wait for the lock on the open file."""
        since = now()
        self.disk(fcntl.flock, self._lock, fcntl.LOCK_EX)
        CALL.note(LOCK, since)

    def leases(self) -> list[Lease]:
        """Return all leases, by one pass; with the lock, remove leftovers of killed calls."""
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
        """Remove those of `names` that are leftovers of killed calls."""
        for name in names:
            if name.startswith(_OURS):
                try:
                    self._remove(name)
                except IsADirectoryError:  # no call has made that
                    continue

    def lease(self, address: Address) -> Lease | None:
        """Return the lease of `address`, None if it is free. Raises OSError."""
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
        lookup = self._opened_lookup()
        for _ in range(_TRIES):
            leases = [self.lease(address) for address in lookup.addresses_of(owner)]
            held = [lease for lease in leases if lease is not None and lease.is_of(owner)]
            if len(held) == len(leases):
                break
            lookup.rebuild()  # another program has rewritten a lease in place
        return held

    def held_by_pod(self, pod: str) -> list[Lease]:
        """Return leases that may be of attachments of `pod`; their records decide."""
        if self._dir < 0 or not pod:
            return []
        leases = [self.lease(address) for address in self._opened_lookup().addresses_of_pod(pod)]
        return [lease for lease in leases if lease is not None and lease.owner is not None]

    def next_free(self, range_set: RangeSet, after: Address | None) -> Address | None:
        """Return the next free address of `range_set` behind `after`, None if there is none.

        An address that rests after its release is used only if there is no other.
        """
        address = None
        lookup = self._opened_lookup()
        for _ in range(_TRIES):
            address = lookup.next_free(range_set, after)
            if address is None or self.lease(address) is None:
                break
            lookup.rebuild()
        return address

    def booted_ns(self) -> int:
        """Return the earliest clock reading of this boot's beginning, ns since the epoch."""
        return self._opened_lookup().booted_ns() if self._dir >= 0 else 0

    def forget_index(self) -> None:
        """Have the next call that needs the index rebuild it: the leases contradict it."""
        if self._dir >= 0:
            self._opened_lookup().forget()

    def claim(
        self, address: Address, owner: Attachment, *, pod: str = "", replace: Lease | None = None
    ) -> None:
        """Lease `address` to `owner`: the file appears with its complete content.

        `replace` is the lease that the new one replaces. Otherwise an existing file raises
        FileExistsError, even if its maker ignores the lock.
        """
        lookup = self._begin()
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
        lookup.taken(address, owner, pod, replace)
        self._in_step = True

    def release(self, lease: Lease, *, pod: str = "", rest_seconds: int = 0) -> None:
        """Free the address of `lease`, if not yet free; it then rests for `rest_seconds`."""
        if self._dir < 0:
            return
        lookup = self._begin()
        CALL.released += self._remove(str(lease.address))
        lookup.freed(lease, pod, rest_seconds)
        self._in_step = True

    def last_reserved(self, index: int) -> Address | None:
        """Return the last address given out from range set `index`, None if unknown."""
        try:
            fd = self.disk(os.open, f"{_LAST_RESERVED}{index}", _READ, dir_fd=self._dir)
        except OSError:
            return None  # only the order of addresses depends on it
        try:
            return parse_address(self.disk(os.read, fd, 64).decode("ascii"))
        except (OSError, ValueError):
            return None
        finally:
            os.close(fd)

    def set_last_reserved(self, index: int, address: Address) -> None:
        """Store the last address given out from range set `index`, atomically. Raises OSError."""
        name, text = f"{_LAST_RESERVED}{index}", str(address)
        if self._overwrite(name, text.encode()):
            return
        self._write_new(text)
        try:
            self.disk(os.replace, _NEW, name, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        finally:
            self._discard_new()

    def _begin(self) -> Lookup:
        """Return the index, loaded before a lease is changed, and marked as out of step."""
        lookup = self._opened_lookup()
        lookup.open()
        self._in_step = False
        return lookup

    def _opened_lookup(self) -> Lookup:
        if self._lookup is None:
            self._lookup = Lookup.at(self, self._indexes, log=self._log, capacity=self._capacity)
        return self._lookup

    @property
    def descriptor(self) -> int:
        """The open directory, -1 when there is none."""
        return self._dir

    def disk(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        # Every system call that can fail passes here, so that a test can inject a failure.
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
            # Left by a killed call. The file may be a second name of a live lease: never truncate
            # it.
            self._remove(_NEW)
            fd = self.disk(os.open, _NEW, flags, _MODE, dir_fd=self._dir)
        try:
            try:
                self._write_all(fd, os.fsencode(text))
            finally:
                self.disk(os.close, fd)  # on NFS, close reports a full disk
        except BaseException:
            self._discard_new()
            raise

    def _overwrite(self, name: str, data: bytes) -> bool:
        """Write `data` over a file of the same length; return False for another length.

        One write of that length is as atomic as a rename, but ext4 does not flush the file for it:
        a rename would take longer than the rest of an ADD.
        """
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = self.disk(os.open, name, flags, dir_fd=self._dir)
        except OSError:
            return False
        try:
            status = self.disk(os.fstat, fd)
            is_own = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if not is_own or status.st_size != len(data):
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
            self._littered = (
                True  # the next call removes it; the lease is complete, or does not exist
            )

    def _remove(self, name: str) -> bool:
        """Remove a file, and tell whether it was there."""
        self._changed = True
        try:
            self.disk(os.unlink, name, dir_fd=self._dir)
        except FileNotFoundError:
            return False
        return True
