"""GC: frees the addresses of attachments that are gone, and of those that a crash left behind.

First all leases are read, then what is alive is looked at, then what is neither is removed under
the lock, unless it has changed meanwhile: in this order no address of a new container is freed.
"""

from collections import Counter
from functools import cache, partial

from cni_common import netns
from cni_common.errors import CNIError
from cni_common.steps import BestEffort
from plugins.host_local.store import GRACE_SECONDS, PLUGIN, Lease, Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_common.host import Host
    from cni_common.record import Record
    from cni_common.request import Attachment, Request

_NO_OWNER = "its file names no owner"
_NOT_LISTED = "the runtime does not list its owner"


def collect(req: "Request", host: "Host", configured: str) -> None:
    """Clean the directory `configured` and those that records of the network name."""
    directories = {configured}
    for path in host.records.paths(PLUGIN, req.network):
        record = host.records.open(path)
        if record is not None:
            directories.add(record.facts.get("directory") or configured)
            record.close()
    sweep = _Sweep(req, host)
    with BestEffort() as steps:
        for directory in sorted(directories):
            steps.attempt(f"cleaning '{directory}'", partial(sweep.clean, directory))
        steps.attempt("cleaning attachment records", sweep.clean_records)


class _Sweep:
    """One GC call."""

    def __init__(self, req: "Request", host: "Host") -> None:
        self._network = req.network
        self._records = host.records
        self._log = host.log
        self._has_list = req.valid_attachments is not None
        self._valid = req.valid_attachments or frozenset()
        self._valid_ids = {one.containerid for one in self._valid}
        self._in_use = cache(netns.addresses_in_use)
        self._living = cache(netns.reachable_namespaces)
        self._left: Counter[Attachment] = Counter()  # leases that remain, by owner

    def clean(self, directory: str) -> None:
        """Remove the leases in `directory` that nobody needs."""
        with Store(directory) as store:
            leases = store.lock().leases()
        self._left.update(lease.owner for lease in leases if lease.owner is not None)
        doomed = [(lease, why) for lease in leases if (why := self._reason(lease))]
        if not doomed:
            return
        with Store(directory) as store, BestEffort() as steps:
            store.lock()
            for lease, why in doomed:
                steps.attempt(str(lease.address), partial(self._remove, store, lease, why))

    def clean_records(self) -> None:
        """Remove the records of attachments that are gone and hold no address."""
        for path in self._records.paths(PLUGIN, self._network):
            record = self._records.open(path)
            if record is None:
                continue  # a call for this attachment is at work
            owner = record.attachment
            idle = not self._left[owner] and record.age() >= GRACE_SECONDS
            why = self._judge(owner, record) if idle else ""
            if why:
                record.remove()
                self._tell(f"the attachment record of {owner.containerid} ({owner.ifname})", why)
            record.close()

    def _reason(self, lease: Lease) -> str:
        """Return why `lease` can go, or an empty string."""
        if lease.is_young():
            return ""
        if lease.owner is None:
            why = _NO_OWNER if lease.reclaimable else ""
        else:
            record, at_work = self._find(lease.owner)
            why = "" if at_work else self._judge(lease.owner, record)
            if record:
                record.close()
        # Where nothing tells the lease's namespace, the address itself may still be seen.
        if why in (_NO_OWNER, _NOT_LISTED) and lease.address in self._in_use():
            return ""
        return why

    def _judge(self, owner: "Attachment", record: "Record | None") -> str:
        """Return why what `owner` holds can go, or an empty string."""
        listed = owner in self._valid if owner.ifname else owner.containerid in self._valid_ids
        if listed:
            return ""
        facts = record.facts if record else {}
        identity = facts.get("netns_id")
        if not identity:
            return _NOT_LISTED if self._has_list else ""
        # A namespace may outlive its path: that of a process, or of another mount namespace.
        if netns.identity(facts["netns"]) == identity or identity in self._living():
            return ""
        return f"its network namespace '{facts['netns']}' is gone"

    def _find(self, owner: "Attachment") -> "tuple[Record | None, bool]":
        """Return the record of `owner`, if any, and whether a call of its is at work."""
        try:
            return self._records.find(PLUGIN, self._network, owner, wait=False), False
        except CNIError:
            return None, True

    def _remove(self, store: Store, lease: Lease, why: str) -> None:
        """Remove `lease` unless it, or the fate of its owner, has changed."""
        if lease.owner is None:
            if store.lease(lease.address) == lease:
                store.release(lease.address)
                self._tell(f"{lease.address} in '{store.directory}'", why)
            return
        record, at_work = self._find(lease.owner)
        try:
            if at_work or not self._judge(lease.owner, record):
                return
            if store.lease(lease.address) != lease:
                return
            store.release(lease.address)
            self._tell(f"{lease.address} of {lease.holder} in '{store.directory}'", why)
            self._left[lease.owner] -= 1
            if record and not self._left[lease.owner]:
                record.remove()
        finally:
            if record:
                record.close()

    def _tell(self, what: str, why: str) -> None:
        self._log(f"{PLUGIN}: GC of network {self._network} removed {what}: {why}")
