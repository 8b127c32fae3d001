"""Removal of stale leases, without blocking other calls for long.

The order is: read all leases, find living containers, both without the lock; then remove stale
leases under the lock, unless a lease has changed meanwhile. In this order no address of a new
container is freed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_common.spec.undo import BestEffort
from plugins.host_local.lease import LeaseFacts, pod_key
from plugins.host_local.store import Store, indexes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_common.node.host import Host
    from plugins.host_local.expiry import Expiry
    from plugins.host_local.lease import Lease

BATCH = 16  # leases that are removed while other calls wait for the lock


@dataclass(frozen=True, slots=True)
class Sweep:
    """One sweep through lease directories; `verb` begins its lines in the log."""

    host: Host
    expiry: Expiry
    verb: str
    rest_seconds: int = 0

    def read(self, directory: str) -> tuple[list[Lease], int]:
        """Return all leases in `directory`, and the beginning of this boot as in Store.booted_ns.

        The latter is 0 without leases. Raises CNIError 5.
        """
        with self._store(directory) as store:
            leases = store.leases()
            return leases, store.lock().booted_ns() if leases else 0

    def remove(
        self, directory: str, leases: Sequence[Lease], booted_ns: int
    ) -> list[tuple[Lease, str]]:
        """Remove the stale ones of `leases`, and return them with the reasons.

        Raises an ExceptionGroup.
        """
        expired = [(one, why) for one in leases if (why := self.expiry.reason(one, booted_ns))]
        removed: list[tuple[Lease, str]] = []
        with BestEffort() as steps:
            for start in range(0, len(expired), BATCH):
                batch = expired[start : start + BATCH]
                step = partial(self._remove_batch, directory, batch, booted_ns, removed)
                steps.attempt(f"'{directory}'", step)
        return removed

    def _remove_batch(
        self,
        directory: str,
        batch: Sequence[tuple[Lease, str]],
        booted_ns: int,
        removed: list[tuple[Lease, str]],
    ) -> None:
        with self._store(directory) as store, BestEffort() as steps:
            store.lock()
            for one in batch:
                step = partial(self._remove_one, store, one, booted_ns, removed)
                steps.attempt(str(one[0].address), step)

    def _remove_one(
        self,
        store: Store,
        expired: tuple[Lease, str],
        booted_ns: int,
        removed: list[tuple[Lease, str]],
    ) -> None:
        """Remove a lease unless it, or the state of its owner, has changed."""
        lease, why = expired
        record = None
        try:
            if lease.owner is not None:
                record, at_work = self.expiry.find(lease.owner)
                if at_work or not self.expiry.of(lease.owner, record, lease, booted_ns):
                    return
            if store.lease(lease.address) != lease:
                return
            facts = record.get(LeaseFacts) if record else None
            pod = pod_key(facts.pod_uid, lease.owner) if facts and lease.owner else ""
            store.release(lease, pod=pod, rest_seconds=self.rest_seconds)
            owner = f" of {lease.holder}" if lease.owner else ""
            self.host.log(f"{self.verb} {lease.address}{owner} in '{store.directory}': {why}")
            if record and lease.owner and not store.held_by(lease.owner):
                record.remove()
            removed.append(expired)
        finally:
            if record:
                record.close()

    def _store(self, directory: str) -> Store:
        return Store(directory, indexes=indexes_of(self.host), log=self.host.log)
