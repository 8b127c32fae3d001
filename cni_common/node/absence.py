"""Containers that are found GONE twice, a grace time apart: nobody has listed what lives."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cni_common.node.liveness import GRACE_SECONDS, Liveness, State

if TYPE_CHECKING:
    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.wire import Json


class Absence:
    """What is known about containers that are GONE; records have when they were first found so."""

    def __init__(self, host: Host, *, patient: bool = False, notes: bool = True) -> None:
        """`patient` demands two looks. Without `notes` none is noted, so there is no second one."""
        self.liveness = Liveness(host)
        self._patient = patient
        self._notes = notes

    def reason(self, record: Record) -> str:
        """Return why what `record` names can go, "" when its container is not known to be GONE."""
        if self.liveness.state_of(record.facts) is not State.GONE:
            self.forget(record)
            return ""
        return describe(record.facts) if self.is_certain(record) else ""

    def is_certain(self, record: Record | None) -> bool:
        """Tell whether a container that is GONE was found so before, as far as that matters."""
        if not self._patient:
            return True
        # The clock that nobody sets; it begins anew with each boot, as the records do.
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        since = record.facts.get("gone_since") if record else None
        if isinstance(since, (int, float)) and since <= now:
            return now - since >= GRACE_SECONDS
        self._note(record, now)
        return False

    def forget(self, record: Record | None) -> None:
        """Have a container that is not GONE found so for the first time once more."""
        self._note(record, None)

    def _note(self, record: Record | None, moment: float | None) -> None:
        if record is None or not self._notes or record.facts.get("gone_since") == moment:
            return
        try:
            record.note(gone_since=moment)
        except OSError:
            return  # it will be seen for the first time once more


def describe(facts: Json) -> str:
    """Return, for a message, why what a record names can go."""
    return f"its network namespace '{facts.get('netns')}' is gone"
