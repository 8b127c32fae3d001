"""The steps of the one call that this process serves, with the times that they took.

A process serves one call at a time, so there is one list. Outside of a call nothing is noted:
programs that stay, such as the agent, use the same code without an end.
"""

from __future__ import annotations

from time import monotonic_ns

STEPS_MAX = 24  # that are short; then only those of _LONG nanoseconds, of which some more
_LONG, _LONG_MAX = 1_000_000, 200
# Nanoseconds: two of the same kind with less between them count as one, and cost as much.
_JOINED = 50_000

PARSE, LOCK, NETLINK, NFT, LEASE, EXEC, WAIT = (
    *("parse", "lock", "netlink", "nft", "lease", "exec", "wait"),
)

now = monotonic_ns


class Steps:
    """Name, begin and end of each step, in nanoseconds of the monotonic clock, by its end."""

    def __init__(self) -> None:
        self.begun = 0  # 0: there is no call
        self.released = 0  # leases that the call has freed
        # Three members for each step: one object is quicker to fill and to write out than many.
        self._noted: list[str | int] = []

    def begin(self) -> None:
        """Begin a call."""
        self.begun, self.released = now(), 0

    def note(self, name: str, since: int) -> None:
        """Note a step that began at `since` and ends now; short ones are dropped if too many."""
        if not self.begun:
            return
        noted, end = self._noted, now()
        if noted and noted[-3] == name and 0 <= since - int(noted[-1]) < _JOINED:
            noted[-1] = end
        elif len(noted) < 3 * STEPS_MAX or (end - since > _LONG and len(noted) < 3 * _LONG_MAX):
            noted += (name, since, end)

    def end(self) -> tuple[int, int, list[str | int]]:
        """End the call; return when it began and ended, and its steps, three members for each."""
        begun, noted = self.begun, self._noted
        self.begun, self._noted = 0, []
        return begun, now(), noted


CALL = Steps()
