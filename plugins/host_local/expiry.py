"""Tells whether a lease is stale: by its owner's liveness, its age, boot and runtime's list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.node.absence import Absence, describe
from cni_common.node.liveness import State, is_hidden
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
    """Tells which leases of one network are stale, during one call.

    `valid` are the attachments that the runtime lists, None without a list. A lease is stale if it
    names no owner, if it is of an earlier boot, or if its owner is GONE; with a list also if its
    owner is not listed and no record names its namespace. `patient`: an owner must be found GONE
    twice, GRACE_SECONDS apart; the record has the first time.
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
        """Without `notes` nothing is written: no owner is ever found GONE a second time."""
        self._records = host.records
        self._network = network
        self._has_list = valid is not None
        self._valid = valid or frozenset()
        self._valid_ids = {one.containerid for one in self._valid}
        self._absence = Absence(host, patient=patient, notes=notes)
        self.waiting = 0  # number of leases that wait for the second time

    def find(self, owner: Attachment) -> tuple[Record | None, bool]:
        """Return the record of `owner`, if any, and whether a call for it is in progress."""
        try:
            return self._records.find(PLUGIN, self._network, owner, wait=False), False
        except CNIError:
            return None, True

    def reason(self, lease: Lease, booted_ns: int) -> str:
        """Return why `lease` is stale, or an empty string.

        `booted_ns`: as Store.booted_ns.
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
        # Without a known namespace, the address itself may still be in use.
        if (
            why in (NO_OWNER, NOT_LISTED, EARLIER_BOOT)
            and lease.address in self._absence.liveness.addresses
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
        """Return why the leases and the record of `owner` are stale, or an empty string."""
        listed = owner in self._valid if owner.ifname else owner.containerid in self._valid_ids
        if listed:
            return ""
        # Records do not outlive a boot: a lease with a record is of this boot, by any clock.
        if record is None and lease is not None and is_of_earlier_boot(lease, booted_ns):
            return EARLIER_BOOT
        facts = record.facts if record else {}
        state = self.state_of(facts)
        if state is not State.GONE:
            self._absence.forget(record)
            return NOT_LISTED if self._has_list and _names_no_namespace(facts, state) else ""
        if not self._absence.is_certain(record):
            self.waiting += 1
            return ""
        return describe(facts)

    def state_of(self, facts: Json) -> State:
        """Return the state of a record's container; `facts` {} for no record."""
        return self._absence.liveness.state_of(facts)


def _names_no_namespace(facts: Json, state: State) -> bool:
    """Tell whether only the list and the address decide, as for a lease of the Go plugin."""
    return state is State.UNKNOWN and not facts.get("netns_id") and not (facts and is_hidden(facts))


def is_of_earlier_boot(lease: Lease, booted_ns: int) -> bool:
    """Tell whether `lease` was made before the boot, with a margin for a clock that was set."""
    return lease.since_ns < booted_ns - GRACE_SECONDS * 10**9
