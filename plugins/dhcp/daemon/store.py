"""Leases on disk: a file for each, which outlives the daemon."""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from math import inf
from typing import TYPE_CHECKING

from cni_common.node.journal import make_private_directory
from cni_common.spec import wire
from cni_common.spec.errors import CNIError
from plugins.dhcp.daemon.machine import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

_FORMAT = 1
_BYTES_MAX = 1 << 17  # two options of 64 KiB: no message is longer
_ENDING, _NEW, _DAMAGED = ".json", ".new", ".damaged"


@dataclass(frozen=True, slots=True)
class Key:
    """The key of a lease: no other lease of the node has the same."""

    network: str
    containerid: str
    ifname: str
    family: int = 4  # IP version: an attachment has one lease of each at most

    @property
    def name(self) -> str:
        """The attachment, as servers know it."""
        return f"{self.containerid}/{self.network}/{self.ifname}"

    def __str__(self) -> str:
        return self.name if self.family == 4 else f"{self.name} (IPv{self.family})"


@dataclass(frozen=True, slots=True)
class Entry:
    """The facts about an attachment that the daemon needs to keep its lease."""

    key: Key
    netns: str  # path
    netns_id: str
    boot_id: str
    pid_ns: int  # of the daemon: processes of others it does not see
    index: int  # of the interface in the namespace
    mac: str
    provided: Mapping[int, bytes]
    requested: Sequence[int]
    priority: int
    broadcast: bool
    below: int  # index of the host's interface that is next to the container's, 0: none is known
    via: str = ""  # name of the host's interface on the same link
    server_mac: str = ""  # of the neighbour that has brought the server's last answer
    is_lost: bool = False  # the address is not on the interface: the lease has ended
    lease: Lease | None = None


class Store:
    """The directory of leases, of which one daemon at a time has the lock."""

    def __init__(self, directory: str, log: Callable[[str], object]) -> None:
        """Raises OSError; BlockingIOError where another daemon has the lock."""
        self._directory = directory
        self._log = log
        make_private_directory(directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._lock = os.open(f"{directory}/lock", flags, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(self._lock)
            raise

    def save(self, entry: Entry) -> None:
        """Write an entry: a power loss leaves it as it was before or is now. Raises OSError."""
        path = self._path(entry.key)
        fd = os.open(
            path + _NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            data = wire.encode_line(_told(entry))
            if os.write(fd, data) != len(data):
                raise OSError(28, "no space left for a lease", path)
            os.fsync(fd)
        finally:
            os.close(fd)
        is_new = not os.path.exists(path)
        os.replace(path + _NEW, path)
        if is_new:
            self._sync()

    def remove(self, key: Key) -> None:
        """Forget an entry. Raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(self._path(key))

    def load(self) -> Iterator[Entry]:
        """Yield all entries; a file that cannot be read is put aside."""
        for name in sorted(os.listdir(self._directory)):
            path = f"{self._directory}/{name}"
            if name.endswith(_NEW):
                os.unlink(path)
            if not name.endswith(_ENDING):
                continue
            try:
                yield _entry_in(_content(path))
            except (CNIError, KeyError, TypeError, ValueError, AttributeError):
                self._log(f"'{path}' is damaged, and put aside: DEL its container's network anew")
                os.replace(path, path + _DAMAGED)

    def close(self) -> None:
        """Let another daemon have the directory."""
        os.close(self._lock)

    def _path(self, key: Key) -> str:
        names = [key.network, key.containerid, key.ifname]
        if key.family != 4:
            names.append(str(key.family))
        digest = hashlib.sha256("\0".join(names).encode())
        return f"{self._directory}/{digest.hexdigest()[:32]}{_ENDING}"

    def _sync(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def read_key(path: str) -> Key:
    """Return the attachment in a file of the queue of releases. Raises CNIError, KeyError."""
    told = wire.decode(_content(path))
    return Key(str(told["network"]), str(told["containerid"]), str(told["ifname"]))


def _content(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, _BYTES_MAX)
    finally:
        os.close(fd)


def _told(entry: Entry) -> dict[str, Any]:
    lease = entry.lease
    told: dict[str, Any] = {
        "format": _FORMAT,
        "network": entry.key.network,
        "containerid": entry.key.containerid,
        "ifname": entry.key.ifname,
        "family": entry.key.family,
        "netns": entry.netns,
        "netns_id": entry.netns_id,
        "boot_id": entry.boot_id,
        "pid_ns": entry.pid_ns,
        "index": entry.index,
        "mac": entry.mac,
        "provided": _as_text(entry.provided),
        "requested": list(entry.requested),
        "priority": entry.priority,
        "broadcast": entry.broadcast,
        "below": entry.below,
        "via": entry.via,
        "server_mac": entry.server_mac,
        "is_lost": entry.is_lost,
    }
    if lease:
        told["lease"] = {
            "address": str(lease.address),
            "server": str(lease.server),
            # Seconds since the boot; without them the lease has no end.
            "times": [] if lease.expire == inf else [lease.renew, lease.rebind, lease.expire],
            "options": _as_text(lease.options),
        }
    return told


def _entry_in(data: bytes) -> Entry:
    told = wire.decode(data)
    if told["format"] != _FORMAT:
        raise ValueError(f"it has format {told['format']}")
    found = told.get("lease")
    lease = None
    if found:
        renew, rebind, expire = map(float, found["times"] or (inf, inf, inf))
        lease = Lease(
            ip_address(found["address"]),
            ip_address(found["server"]),
            renew,
            rebind,
            expire,
            _from_text(found["options"]),
        )
    family = int(told.get("family", 4))  # a file of an earlier release has none
    if family not in (4, 6) or (lease and lease.address.version != family):
        raise ValueError(f"it is of family {family}")
    return Entry(
        Key(str(told["network"]), str(told["containerid"]), str(told["ifname"]), family),
        str(told["netns"]),
        str(told["netns_id"]),
        str(told["boot_id"]),
        int(told["pid_ns"]),
        int(told["index"]),
        str(told["mac"]),
        _from_text(told["provided"]),
        [int(one) for one in told["requested"]],
        int(told["priority"]),
        bool(told["broadcast"]),
        int(told["below"]),
        str(told.get("via", "")),
        str(told["server_mac"]),
        bool(told["is_lost"]),
        lease,
    )


def _as_text(options: Mapping[int, bytes]) -> dict[str, str]:
    return {str(code): value.hex() for code, value in options.items()}


def _from_text(options: Mapping[str, str]) -> dict[int, bytes]:
    return {int(code): bytes.fromhex(value) for code, value in options.items()}
