"""Whether what a lease is for is gone, by its record, its namespace, its age and the boot."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING

from cni_common.kernel import netns
from cni_common.spec.errors import CNIError
from plugins.host_local.lease import GRACE_SECONDS, PLUGIN

if TYPE_CHECKING:
    from collections.abc import Callable
    from functools import _lru_cache_wrapper

    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.request import Attachment
    from cni_common.spec.wire import Json
    from plugins.host_local.lease import Lease

NO_OWNER = "its file names no owner"
NOT_LISTED = "the runtime does not list its owner"
EARLIER_BOOT = "it is of an earlier boot"


class Judge:
    """Judges the leases of one network during one call.

    `valid` are the attachments that the runtime lists, None when there is no list. Without a
    list, only what is known to be dead can go: what names nobody, what is of an earlier boot,
    what had a namespace that is gone. A `patient` judge wants to see the last twice, a grace
    time apart, and notes the first sight in the record.
    """

    def __init__(
        self,
        host: Host,
        network: str,
        *,
        valid: frozenset[Attachment] | None = None,
        patient: bool = False,
        notes: bool = True,
    ) -> None:
        """Without `notes` nothing is written, so that nothing is ever seen a second time."""
        self._records = host.records
        self._network = network
        self._has_list = valid is not None
        self._valid = valid or frozenset()
        self._valid_ids = {one.containerid for one in self._valid}
        self._patient = patient
        self._notes = notes
        self.waiting = 0  # how many leases want a second look
        self._in_use: Callable[[], frozenset[Address]] = cache(netns.addresses_in_use)
        self._living: _lru_cache_wrapper[dict[str, str]] = cache(netns.reachable_namespaces)

    def find(self, owner: Attachment) -> tuple[Record | None, bool]:
        """Return the record of `owner`, if any, and whether a call of its is at work."""
        try:
            return self._records.find(PLUGIN, self._network, owner, wait=False), False
        except CNIError:
            return None, True

    def reason(self, lease: Lease, booted_ns: int) -> str:
        """Return why `lease` can go, or an empty string.

        `booted_ns` is the earliest time at which this boot can have begun, since the epoch.
        """
        if lease.is_young():
            return ""
        if lease.owner is None:
            why = NO_OWNER if lease.reclaimable else ""
        else:
            record, at_work = self.find(lease.owner)
            why = "" if at_work else self.of(lease.owner, record, lease, booted_ns)
            if record:
                record.close()
        # Where nothing tells the lease's namespace, the address itself may still be seen.
        if why in (NO_OWNER, NOT_LISTED, EARLIER_BOOT) and lease.address in self._in_use():
            return ""
        return why

    def of(
        self,
        owner: Attachment,
        record: Record | None,
        lease: Lease | None = None,
        booted_ns: int = 0,
    ) -> str:
        """Return why what `owner` holds can go, or an empty string."""
        listed = owner in self._valid if owner.ifname else owner.containerid in self._valid_ids
        if listed:
            return ""
        # Records do not outlive a boot: who has one is of this boot, whatever the clock said.
        if record is None and lease is not None and is_of_earlier_boot(lease, booted_ns):
            return EARLIER_BOOT
        facts = record.facts if record else {}
        alive = self.lives(facts)
        if alive is not False:
            self._note(record, None)
            return NOT_LISTED if alive is None and self._has_list else ""
        if self._patient and not self._seen_before(record):
            self.waiting += 1
            return ""
        return f"its network namespace '{facts['netns']}' is gone"

    def lives(self, facts: Json) -> bool | None:
        """Tell whether the namespace that a record names exists, None when nobody can tell."""
        wanted = facts.get("netns_id")
        return netns.lives(facts.get("netns", ""), wanted, self._living) if wanted else None

    def _seen_before(self, record: Record | None) -> bool:
        # The clock that nobody sets; it begins anew with each boot, as the records do.
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        since = record.facts.get("gone_since") if record else None
        if isinstance(since, (int, float)) and since <= now:
            return now - since >= GRACE_SECONDS
        self._note(record, now)
        return False

    def _note(self, record: Record | None, moment: float | None) -> None:
        if record is None or not self._notes or record.facts.get("gone_since") == moment:
            return
        try:
            record.note(gone_since=moment)
        except OSError:
            return  # it will be seen for the first time once more


def is_of_earlier_boot(lease: Lease, booted_ns: int) -> bool:
    """Tell whether `lease` was made before the boot, with a margin for a clock that was set."""
    return lease.since_ns < booted_ns - GRACE_SECONDS * 10**9
