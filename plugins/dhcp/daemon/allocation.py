"""One ADD: its leases, of one or two IP versions, all of them or none."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from plugins.dhcp.daemon.upkeep import Upkeep, Waiter


class Allocation:
    """Waits for the leases of an ADD, and gives them back if one cannot be had."""

    def __init__(self, number: int, finish: Waiter) -> None:
        """`finish` is told once, of the `number` leases together or of the first failure."""
        self._number = number
        self._finish = finish
        self._waiters: list[tuple[Upkeep, Waiter]] = []
        self._begun: list[Upkeep] = []  # by this ADD: no other call knows of their leases
        self._found: dict[int, dict[str, Any]] = {}  # by IP version
        self.is_over = False  # `finish` was told, or no caller is left to be told

    def waiter(self, kept: Upkeep, *, is_new: bool) -> Waiter:
        """Return what an upkeep, begun by this ADD or before, is to tell of its lease."""
        waiter: Waiter = partial(self._tell, kept)
        self._waiters.append((kept, waiter))
        if is_new:
            self._begun.append(kept)
        return waiter

    def leave(self) -> None:
        """Take all back, unless it is over: the plugin has gone."""
        if not self.is_over:
            self._give_up(None)

    def _tell(self, kept: Upkeep, outcome: dict[str, Any] | CNIError) -> None:
        if self.is_over:
            return
        if isinstance(outcome, CNIError):
            self._give_up(kept)
            self._finish(outcome)
            return
        self._found[kept.entry.key.family] = outcome
        if len(self._found) == self._number:
            self.is_over = True
            self._finish(joined(self._found))

    def _give_up(self, failed: Upkeep | None) -> None:
        """Give back what was begun, but for what has `failed` and ends by itself."""
        self.is_over = True
        for kept, waiter in self._waiters:
            is_bound = kept in self._begun and kept.entry.key.family in self._found
            if kept is failed:
                continue
            if is_bound:
                kept.release()
            else:
                kept.leave(waiter)


def joined(found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return one answer made of those of each IP version: the values of all, IPv4 first."""
    ordered = [found[version] for version in sorted(found)]
    results = [one["result"] for one in ordered]
    dns: dict[str, Any] = {}
    for result in results:
        for key, value in result["dns"].items():
            if isinstance(value, list):
                dns[key] = list(dict.fromkeys([*dns.get(key, ()), *value]))
            else:
                dns.setdefault(key, value)
    return {
        **ordered[0],
        "leases": {
            f"ipv{version}": {key: one[key] for key in ("address", "server")}
            for version, one in found.items()
        },
        "result": {
            "cniVersion": results[0]["cniVersion"],
            "ips": [ip for result in results for ip in result["ips"]],
            "routes": [route for result in results for route in result["routes"]],
            "dns": dns,
        },
    }
