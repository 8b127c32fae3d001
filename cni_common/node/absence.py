"""Containers found GONE twice, a grace time apart: the condition for removal without a list."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cni_common.node.liveness import GRACE_SECONDS, Liveness, State

if TYPE_CHECKING:
    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.wire import Json


class Absence:
    """Decides on containers that are GONE; their records hold the time of the first finding."""

    def __init__(self, host: Host, *, patient: bool = False, notes: bool = True) -> None:
        """`patient` demands two looks. Without `notes` none is noted, so there is no second one."""
        self.liveness = Liveness(host)
        self._patient = patient
        self._notes = notes

    def reason(self, record: Record) -> str:
        """Return why the attachment of `record` can go, "" if its container is not surely GONE."""
        if self.liveness.state_of(record.facts) is not State.GONE:
            self.forget(record)
            return ""
        return describe(record.facts) if self.is_certain(record) else ""

    def is_certain(self, record: Record | None) -> bool:
        """Tell whether a GONE container was found GONE before; always true without `patient`."""
        if not self._patient:
            return True
        # A clock that cannot be set; it starts anew with each boot, as the records do.
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        since = record.facts.get("gone_since") if record else None
        if isinstance(since, (int, float)) and since <= now:
            return now - since >= GRACE_SECONDS
        self._note(record, now)
        return False

    def forget(self, record: Record | None) -> None:
        """Drop the time of the first finding: the container is not GONE."""
        self._note(record, None)

    def _note(self, record: Record | None, moment: float | None) -> None:
        if record is None or not self._notes or record.facts.get("gone_since") == moment:
            return
        try:
            record.note(gone_since=moment)
        except OSError:
            return  # the next call finds it for the first time again


def describe(facts: Json) -> str:
    """Return, for a message, why a recorded attachment can go."""
    return f"its network namespace '{facts.get('netns')}' is gone"
