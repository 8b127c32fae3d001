"""Tells for STATUS whether the next ADD would find an address, without the lock."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from plugins.host_local.lease import GRACE_SECONDS, PLUGIN, LeaseFacts, address_of
from plugins.host_local.ranges import unlisted
from plugins.host_local.store import Store, indexes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.spec.names import Address
    from plugins.host_local.expiry import Expiry
    from plugins.host_local.ranges import RangeSet

_PROBE = ".pycni-probe"
_MODE = 0o600
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


class Capacity(Store):
    """The lease directory of `network`, read without the lock."""

    def __init__(self, directory: str, host: Host, network: str) -> None:
        super().__init__(directory, create=True, indexes=indexes_of(host))
        self._host = host
        self._network = network

    def probe(self) -> None:
        """Write a temporary file, as a lease would be. Raises OSError."""
        # Without a name if possible: a name would change the directory and make the index stale.
        name, flags = "", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
        try:
            fd = self.disk(os.open, ".", flags, _MODE, dir_fd=self._dir)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            name = _PROBE
            fd = self.disk(os.open, name, flags, _MODE, dir_fd=self._dir)
        try:
            self._write_all(fd, b"\n")
        finally:
            os.close(fd)
            if name:
                self._remove(name)

    def has_room(self, range_set: RangeSet) -> bool:
        """Tell whether an address of `range_set` is free, or an ADD could reclaim one.

        A node that is not ready gets no ADD, so a reclaimable address must count as free.
        """
        if self._opened_lookup().seems_free(range_set):
            return True
        names = frozenset(self._names())
        # Most names are addresses: fewer names than addresses leave one free.
        count = sum(name[0] not in "l." for name in names)
        if count < range_set.size:
            return True
        if range_set.pick(unlisted(names, range_set.version), None) is not None:
            return True
        from plugins.host_local.expiry import Expiry

        expiry = Expiry(self._host, self._network, notes=False)
        booted_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for address in self._suspects(expiry, booted_ns):
            if range_set.range_of(address) is not None:
                lease = self.lease(address)
                if lease is None or expiry.reason(lease, booted_ns):
                    return True
        return False

    def _suspects(self, expiry: Expiry, booted_ns: int) -> Iterator[Address]:
        """Yield each address whose lease ADD might reclaim, without reading all 65,000 files.

        First the addresses in records of containers that are GONE, then files that are empty or
        older than the boot: no power loss tears a file of this boot.
        """
        from cni_common.node.liveness import State

        for record in self._host.records.of_plugin(PLUGIN):
            facts = record.get(LeaseFacts)
            store = record.network, facts.directory if facts else ""
            if facts is None or store != (self._network, self.directory):
                continue
            if expiry.state_of(record.facts) is State.GONE:
                yield from filter(None, map(address_of, facts.addresses))
        before_ns = booted_ns - GRACE_SECONDS * 10**9
        with self.disk(os.scandir, self._dir) as entries:
            for entry in entries:
                address = address_of(entry.name)
                if address is None:
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    yield address  # it has just been freed
                    continue
                if status.st_size == 0 or status.st_mtime_ns < before_ns:
                    yield address
