"""Makes the index of a large lease directory anew, while others can have its lock.

Reading 65,000 leases takes a second or more. So they are read without the lock, by one process at
a time, and only what has changed meanwhile is read under it.
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
    from plugins.host_local.index.lookup import Catalog, LeaseDirectory


_TRIES = 3  # at reading without the lock what others change meanwhile


@dataclass(frozen=True, slots=True)
class _Seen:
    """One lease as it was read."""

    address: Address
    inode: int
    owner: str  # as the file says it, "" when it names nobody


def renew(store: LeaseDirectory, catalog: Catalog) -> None:
    """Bring the index of `store` up to date; the lock is held at the beginning and at the end.

    Nobody waits in here who has the lock, so two that wait for each other cannot be. What fails of
    the index is left to `catalog`, which then makes one in memory. Raises OSError.
    """
    store.unlock()
    alone = catalog.alone()
    try:
        if alone >= 0:
            fcntl.flock(alone, fcntl.LOCK_EX)
        store.relock()
        if not catalog.is_behind():
            return  # somebody else has done it meanwhile, or there is no place for an index
        stamp = catalog.stamp()
        store.unlock()
        inodes = store.inodes()
        seen = _read(store, inodes)
        draft = catalog.draft([(one.address, one.owner) for one in seen.values()])
        store.relock()
        for _ in range(_TRIES):
            if catalog.is_unchanged(stamp):
                break
            stamp = catalog.stamp()
            store.unlock()
            with suppress(FullError):  # to be met again below
                _catch_up(store, draft, seen)
            store.relock()

        def finish(index: Index) -> None:
            if not catalog.is_unchanged(stamp):
                _catch_up(store, index, seen)
            store.tidy(inodes)

        catalog.adopt(draft, finish)
    finally:
        if alone >= 0:
            os.close(alone)


def _read(store: LeaseDirectory, inodes: dict[str, int]) -> dict[str, _Seen]:
    """Return those of the leases that are there, by the names of their files."""
    seen = {}
    for name, inode in inodes.items():
        address = address_of(name)
        lease = store.lease(address) if address is not None else None
        if lease is not None:
            owner = text_of(lease.owner) if lease.owner else ""
            seen[name] = _Seen(lease.address, inode, owner)
    return seen


def _catch_up(store: LeaseDirectory, index: Index, seen: dict[str, _Seen]) -> None:
    """Tell `index`, and `seen`, what has become of the directory since that was read."""
    there = store.inodes()
    before = {name: one.inode for name, one in seen.items()}
    for name, _ in before.items() - there.items():
        index.free(seen[name].address, seen[name].owner)
        del seen[name]
    for name, one in _read(store, dict(there.items() - before.items())).items():
        index.take(one.address, one.owner)
        seen[name] = one
