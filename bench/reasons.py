"""Why a bar may be missed, and the physical limit beside it: parts that the same run measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.samples import ENGINE, FLOOR, ONE_SHOT, Report

Part = tuple[str, str]  # key of a row, and column

LAUNCHER: Part = ("version", ENGINE)
PAIR: Part = ("plain.add", FLOOR)
DELETION: Part = ("at-once-1.del", FLOOR)


@dataclass(frozen=True)
class Reason:
    """One sentence, and what no plugin of this kind can do without.

    That is the sum of the medians of `parts`, or a known ratio, `least`.
    """

    why: str
    parts: Sequence[Part] = ()
    least: float | None = None

    def limit(self, report: Report, row: str, to: str) -> float | None:
        """Return the best ratio of `row` to the column `to`, None if a part was not measured."""
        if self.least is not None:
            return self.least
        measured = report.row(row)
        theirs = _ms(report, (row, to)) if to else 1.0
        parts = [_ms(report, part) for part in self.parts]
        known = [ms for ms in parts if ms is not None]
        if measured is None or not theirs or not known or len(known) < len(parts):
            return None
        ratio = sum(known) / theirs
        return 1 / ratio if measured.unit == "per second" else ratio


def _ms(report: Report, part: Part) -> float | None:
    """Return the median of a row's column in ms a call, None if it was not measured."""
    row = report.row(part[0])
    median = row.median(part[1]) if row else None
    return 1000 / median if row and median and row.unit == "per second" else median


def reason(row: str, column: str) -> Reason | None:
    """Return the reason for a bar of `row` and `column`; None where none is known."""
    found = _REASONS.get((row, column))
    group = row.partition(".")[0].partition("-")[0]
    return found or _OF_GROUPS.get((group, column)) or _OF_COLUMNS.get(column)


_ONE_SHOT = Reason(
    "the launcher takes the time of the limit; a process that goes on from the snapshot, its work"
    " in Python and the copies of the pages that it changes come on top",
    (LAUNCHER,),
)
_ONE_SHOT_DEL = Reason(_ONE_SHOT.why, (LAUNCHER, DELETION))
_ENGINE = Reason(
    "launcher and kernel take the time of the limit; the rest is the work of the plugin in Python,"
    " and handing the call over",
    (LAUNCHER,),
)
_PAIR = Reason(_ENGINE.why, (LAUNCHER, PAIR))
_TWO_CALLS = Reason(
    "two plugins are two launchers and two hand-overs; the rest is their work in Python",
    (LAUNCHER, LAUNCHER, PAIR),
)
_MOVES = Reason(
    "the kernel waits for all its RCU callbacks in each move of a device; ours makes one move where"
    " the reference makes two, beside its own start",
    least=0.33,
)
_GROWTH = Reason(
    "what the kernel does in proportion to its neighbours is in the floor; the processors' caches,"
    " which two thousand interfaces fill, are not",
    least=1.0,
)
_SAME_PATH = Reason(
    "packets take the same way through the kernel: it is the noise of the run", least=1.0
)
_AT_ONCE = Reason(
    "the kernel's RTNL lock takes one call after the other: the floor's program gets the limit, the"
    " rest is Python on the same processors",
)
_OF_COLUMNS: Mapping[str, Reason] = {ONE_SHOT: _ONE_SHOT, ENGINE: _ENGINE}
_OF_GROUPS: Mapping[Part, Reason] = {
    ("growth", ENGINE): _GROWTH,
    ("throughput", ENGINE): _SAME_PATH,
    ("throughput", ONE_SHOT): _SAME_PATH,
    ("plain", ENGINE): _PAIR,
    ("masq", ENGINE): _PAIR,
    ("portmap", ENGINE): _TWO_CALLS,
}
_REASONS: Mapping[Part, Reason] = {
    ("plain.del", ONE_SHOT): _ONE_SHOT_DEL,
    ("masq.del", ONE_SHOT): _ONE_SHOT_DEL,
    ("netavark-0.del", ONE_SHOT): _ONE_SHOT_DEL,
    ("netavark-4.del", ONE_SHOT): _ONE_SHOT_DEL,
    ("plain.del", ENGINE): Reason(_ENGINE.why, (LAUNCHER, DELETION)),
    ("masq.del", ENGINE): Reason(_ENGINE.why, (LAUNCHER, DELETION)),
    ("portmap-4.add", ONE_SHOT): Reason(
        "two plugins are two processes of Python", (LAUNCHER, LAUNCHER)
    ),
    ("host-device.add", ENGINE): _MOVES,
    ("host-device.add", ONE_SHOT): _MOVES,
    ("at-once-32.add", ONE_SHOT): Reason(_AT_ONCE.why, (("at-once-32.add", FLOOR),)),
    ("at-once-32.del", ONE_SHOT): Reason(_AT_ONCE.why, (("at-once-32.del", FLOOR),)),
    ("at-once-32.cpu", ENGINE): Reason("most of it is the work of the plugin in Python"),
    ("at-once-32.add", ENGINE): Reason(_AT_ONCE.why, (("at-once-32.add", FLOOR),)),
    ("at-once-32.del", ENGINE): Reason(_AT_ONCE.why, (("at-once-32.del", FLOOR),)),
}
