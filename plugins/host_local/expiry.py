"""Whether a lease can go: by the state of its owner, its age, the boot and the runtime's list."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cni_common.node.liveness import Liveness, State, is_hidden
from cni_common.spec.errors import CNIError
from plugins.host_local.lease import GRACE_SECONDS, PLUGIN

if TYPE_CHECKING:
    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.request import Attachment
    from cni_common.spec.wire import Json
    from plugins.host_local.lease import Lease

NO_OWNER = "its file names no owner"
NOT_LISTED = "the runtime does not list its owner"
EARLIER_BOOT = "it is of an earlier boot"


class Expiry:
    """Tells which leases of one network can go, during one call.

    `valid` are the attachments that the runtime lists, None when there is no list. What can go:
    a lease that names no owner, that is of an earlier boot, whose owner is GONE; with a list also
    one that is not listed, and of which nothing is recorded by which its owner could be found.
    `patient`: an owner must be found GONE twice, a grace time apart; the record has the first time.
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
        self._liveness = Liveness(host)

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
        if (
            why in (NO_OWNER, NOT_LISTED, EARLIER_BOOT)
            and lease.address in self._liveness.addresses
        ):
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
        state = self.state_of(facts)
        if state is not State.GONE:
            self._note(record, None)
            return NOT_LISTED if self._has_list and _names_no_namespace(facts, state) else ""
        if self._patient and not self._seen_before(record):
            self.waiting += 1
            return ""
        return f"its network namespace '{facts['netns']}' is gone"

    def state_of(self, facts: Json) -> State:
        """Return the state of the container that a record is about; `facts` {} for no record."""
        return self._liveness.state_of(facts)

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


def _names_no_namespace(facts: Json, state: State) -> bool:
    """Tell whether the list and the address alone decide, as with a lease of the Go plugin."""
    return state is State.UNKNOWN and not facts.get("netns_id") and not (facts and is_hidden(facts))


def is_of_earlier_boot(lease: Lease, booted_ns: int) -> bool:
    """Tell whether `lease` was made before the boot, with a margin for a clock that was set."""
    return lease.since_ns < booted_ns - GRACE_SECONDS * 10**9
