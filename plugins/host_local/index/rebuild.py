"""The rebuild of a large directory's index, mostly without holding the directory's lock.

Reading 65,000 leases takes a second or more. One process at a time reads them without the lock; it
reads only the changes since then under the lock.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plugins.host_local.index.blocks import FullError
from plugins.host_local.lease import address_of, text_of

if TYPE_CHECKING:
    from cni_common.spec.names import Address
    from plugins.host_local.index.blocks import Index
    from plugins.host_local.index.lookup import LeaseDirectory, Lookup


_TRIES = 3  # readings of later changes without the lock


@dataclass(frozen=True, slots=True)
class _Seen:
    """One lease as it was read."""

    address: Address
    inode: int
    owner: str  # the text of the file, "" if it names no owner


def renew(store: LeaseDirectory, lookup: Lookup) -> None:
    """Rebuild the index of `store`; the caller holds the lock at the beginning and at the end.

    Never blocks while holding the store lock, so it cannot deadlock. Index failures fall back to an
    index in memory. Raises OSError for the directory.
    """
    store.unlock()
    exclusive = lookup.rebuild_lock()
    try:
        if exclusive >= 0:
            fcntl.flock(exclusive, fcntl.LOCK_EX)
        store.relock()
        if not lookup.is_stale():
            return  # another process has rebuilt it meanwhile, or no file can be kept
        stamp = lookup.stamp()
        store.unlock()
        inodes = store.inodes()
        seen = _read(store, inodes)
        draft = lookup.draft([(one.address, one.owner) for one in seen.values()])
        store.relock()
        for _ in range(_TRIES):
            if lookup.is_unchanged(stamp):
                break
            stamp = lookup.stamp()
            store.unlock()
            with suppress(FullError):  # met again below
                _catch_up(store, draft, seen)
            store.relock()

        def finish(index: Index) -> None:
            if not lookup.is_unchanged(stamp):
                _catch_up(store, index, seen)
            store.tidy(inodes)

        lookup.adopt(draft, finish)
    finally:
        if exclusive >= 0:
            os.close(exclusive)


def _read(store: LeaseDirectory, inodes: dict[str, int]) -> dict[str, _Seen]:
    """Return the existing leases among `inodes`, by the names of their files."""
    seen = {}
    for name, inode in inodes.items():
        address = address_of(name)
        lease = store.lease(address) if address is not None else None
        if lease is not None:
            owner = text_of(lease.owner) if lease.owner else ""
            seen[name] = _Seen(lease.address, inode, owner)
    return seen


def _catch_up(store: LeaseDirectory, index: Index, seen: dict[str, _Seen]) -> None:
    """Update `index` and `seen` with the changes of the directory since it was read."""
    there = store.inodes()
    before = {name: one.inode for name, one in seen.items()}
    for name, _ in before.items() - there.items():
        index.free(seen[name].address, seen[name].owner)
        del seen[name]
    for name, one in _read(store, dict(there.items() - before.items())).items():
        index.take(one.address, one.owner)
        seen[name] = one
