"""The leases of one network on disk, in the layout of the Go implementation.

A directory with one file per address, named after it and holding "containerid CR LF ifname";
`lock`, on which every writer holds an exclusive flock; and `last_reserved_ip.<i>`, the address
behind which the search in range set i goes on. The Go plugin may be at work in the same
directory at any time: it reads every file in it, so none of ours may mislead it.
"""

import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from cni_common.errors import CNIError, Code
from cni_common.request import Attachment
from cni_common.types import Address, parse_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from types import TracebackType
    from typing import ParamSpec, Self, TypeVar

    P = ParamSpec("P")
    T = TypeVar("T")

PLUGIN = "host-local"  # as the attachment records name it
GRACE_SECONDS = 60  # younger leases may belong to an ADD that is still at work
LEASE_BYTES_MAX = 1 << 18  # more than CNI_CONTAINERID can hold

_LOCK = "lock"
_LAST_RESERVED = "last_reserved_ip."
# No address looks like these, and no container id can begin with a dot.
_OURS = ".pycni-"
_NEW = f"{_OURS}new"
_PROBE = f"{_OURS}probe"
_MODE = 0o600
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
# What says "this file cannot be a lease", and not "this process cannot read".
_FOREIGN = frozenset({errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM, errno.EIO})


@dataclass(frozen=True, slots=True)
class Lease:
    """One file named after an address.

    `owner` has an empty ifname when an early release wrote the lease. It is None when the file
    names nobody: then it is `reclaimable` if it is a file that a crash left empty or torn, and
    otherwise something that is not ours to touch.
    """

    address: Address
    owner: Attachment | None
    since_ns: int = 0  # modification time, nanoseconds since the epoch
    inode: int = 0
    reclaimable: bool = False

    @property
    def holder(self) -> str:
        """The owner, for a message."""
        if self.owner is None:
            return "a lease file without owner"
        return f"{self.owner.containerid}/{self.owner.ifname}".removesuffix("/")

    @property
    def since(self) -> str:
        """When the lease was made, RFC 3339 in UTC."""
        import time  # noqa: PLC0415 - for messages only

        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.since_ns // 10**9))

    def is_young(self) -> bool:
        """Tell whether the lease is within its grace time; one from the future is."""
        import time  # noqa: PLC0415 - on rare paths only

        return time.time_ns() - self.since_ns < GRACE_SECONDS * 10**9

    def is_of(self, owner: Attachment) -> bool:
        """Tell whether `owner` holds it; a lease without ifname is of every interface."""
        return (
            self.owner is not None
            and self.owner.containerid == owner.containerid
            and self.owner.ifname in (owner.ifname, "")
        )


class Store:
    """The lease directory of one network, open inside a `with` block.

    Every verb from `leases` on wants the lock, which the end of the block gives back. An
    OSError that leaves the block becomes a CNIError 5 that names the directory. A directory
    that does not exist has no leases, unless `create` makes it.
    """

    def __init__(self, directory: str, *, create: bool = False) -> None:
        self.directory = directory
        self._create = create
        self._dir = -1
        self._lock = -1

    def __enter__(self) -> "Self":
        try:
            if self._create:
                self._disk(os.makedirs, self.directory, 0o755, exist_ok=True)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self._dir = self._disk(os.open, self.directory, flags)
        except OSError as error:
            if self._create or error.errno != errno.ENOENT:
                raise self._failure(error) from error
        return self

    def __exit__(
        self,
        _kind: "type[BaseException] | None",
        error: BaseException | None,
        _trace: "TracebackType | None",
    ) -> None:
        for fd in (self._lock, self._dir):
            if fd >= 0:
                os.close(fd)
        self._lock = self._dir = -1
        if isinstance(error, OSError):
            raise self._failure(error) from error

    def lock(self) -> "Self":
        """Wait until nobody else, the Go plugin included, is at work in the directory."""
        if self._dir >= 0:
            flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._lock = self._disk(os.open, _LOCK, flags, _MODE, dir_fd=self._dir)
            self._disk(fcntl.flock, self._lock, fcntl.LOCK_EX)
        return self

    def probe(self) -> None:
        """Prove that a lease could be written, or raise OSError. Needs no lock."""
        fd = self._disk(os.open, _PROBE, _WRITE, _MODE, dir_fd=self._dir)
        try:
            self._write_all(fd, b"\n")
        finally:
            os.close(fd)
            self._remove(_PROBE)

    def occupied(self, version: int) -> "Container[int]":
        """Return which addresses of family `version` have a file, as numbers. Needs no lock."""
        return _Names(frozenset(self._names()), IPv4Address if version == 4 else IPv6Address)

    def leases(self) -> list[Lease]:
        """Return all leases, by one pass; removes what a killed call left behind."""
        found = []
        for name in self._names():
            address = _address_of(name)
            if address is not None:
                lease = self.lease(address)
                if lease is not None:
                    found.append(lease)
            elif name.startswith(_OURS):
                self._remove(name)
        return found

    def lease(self, address: Address) -> Lease | None:
        """Return the lease of `address`, None when it is free."""
        if self._dir < 0:
            return None
        try:
            fd = self._disk(os.open, str(address), _READ, dir_fd=self._dir)
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

    def claim(self, address: Address, owner: Attachment, *, replace: bool = False) -> None:
        """Give `address` to `owner`: its file appears at once with its content.

        `replace` is for the file of a reclaimable lease. Otherwise an existing file raises
        FileExistsError, even when its maker disregards the lock.
        """
        self._write_new(f"{owner.containerid}\r\n{owner.ifname}")
        try:
            if replace:
                self._disk(
                    os.replace, _NEW, str(address), src_dir_fd=self._dir, dst_dir_fd=self._dir
                )
            else:
                self._disk(
                    os.link,
                    _NEW,
                    str(address),
                    src_dir_fd=self._dir,
                    dst_dir_fd=self._dir,
                    follow_symlinks=False,
                )
        finally:
            self._discard_new()

    def release(self, address: Address) -> None:
        """Free `address`; it may be free already."""
        if self._dir >= 0:
            self._remove(str(address))

    def last_reserved(self, index: int) -> Address | None:
        """Return where the search in range set `index` ended last time, None if unknown."""
        try:
            fd = self._disk(os.open, f"{_LAST_RESERVED}{index}", _READ, dir_fd=self._dir)
        except OSError:
            return None  # only the order of the addresses depends on it
        try:
            return parse_address(self._disk(os.read, fd, 64).decode("ascii"))
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
            self._disk(os.replace, _NEW, name, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        finally:
            self._discard_new()

    def _disk(self, call: "Callable[P, T]", *args: "P.args", **kwargs: "P.kwargs") -> "T":
        # Every call that can fail passes here, so that a test can make each of them fail.
        return call(*args, **kwargs)

    def _failure(self, error: OSError) -> CNIError:
        name = f" ({error.filename})" if error.filename not in (None, self.directory) else ""
        return CNIError(
            Code.IO_FAILURE,
            f"cannot use the lease directory '{self.directory}': {error.strerror}{name}",
        )

    def _names(self) -> list[str]:
        return self._disk(os.listdir, self._dir) if self._dir >= 0 else []

    def _read_lease(self, address: Address, fd: int) -> Lease:
        status = self._disk(os.fstat, fd)
        inode, since = status.st_ino, status.st_mtime_ns
        if not stat.S_ISREG(status.st_mode) or status.st_size > LEASE_BYTES_MAX:
            return Lease(address, None, since, inode)
        try:
            data = self._disk(os.read, fd, status.st_size) if status.st_size else b""
        except OSError as error:
            if error.errno in _FOREIGN:
                return Lease(address, None, since, inode)
            raise
        owner = _owner_in(data)
        return Lease(address, owner, since, inode, reclaimable=owner is None)

    def _write_new(self, text: str) -> None:
        flags = _WRITE | os.O_EXCL
        try:
            fd = self._disk(os.open, _NEW, flags, _MODE, dir_fd=self._dir)
        except FileExistsError:
            # Of a killed call. It may be a second name of a live lease: never truncate it.
            self._remove(_NEW)
            fd = self._disk(os.open, _NEW, flags, _MODE, dir_fd=self._dir)
        try:
            try:
                self._write_all(fd, os.fsencode(text))
            finally:
                self._disk(os.close, fd)  # where NFS tells that the disk is full
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
            fd = self._disk(os.open, name, flags, dir_fd=self._dir)
        except OSError:
            return False
        try:
            status = self._disk(os.fstat, fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size != len(data):
                return False
            self._write_all(fd, data)
        finally:
            os.close(fd)
        return True

    def _write_all(self, fd: int, data: bytes) -> None:
        # No fsync: see "Files on disk" in docs/plugins/host-local.md.
        if self._disk(os.write, fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _discard_new(self) -> None:
        try:
            self._remove(_NEW)
        except OSError:
            return  # the next call removes it; the lease itself is complete, or never was

    def _remove(self, name: str) -> None:
        try:
            self._disk(os.unlink, name, dir_fd=self._dir)
        except FileNotFoundError:
            return


@dataclass(frozen=True, slots=True)
class _Names:
    """Addresses by the names of their files; cheaper than to parse every name."""

    names: frozenset[str]
    family: type[IPv4Address | IPv6Address]

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and str(self.family(number)) in self.names


def _address_of(name: str) -> Address | None:
    if name[-1] not in "0123456789abcdef:":
        return None
    try:
        address = parse_address(name)
    except ValueError:
        return None
    return address if str(address) == name else None


def _owner_in(data: bytes) -> Attachment | None:
    # As the Go plugin compares: white space around the whole does not count.
    parts = os.fsdecode(data.strip()).split("\r\n")
    if len(parts) > 2 or not all(parts) or any(c < " " for part in parts for c in part):
        return None
    return Attachment(parts[0], parts[1] if len(parts) == 2 else "")
