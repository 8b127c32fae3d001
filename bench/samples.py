"""The samples: rows by column, their medians and percentiles."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

REFERENCE, ONE_SHOT, ENGINE, FLOOR = "reference", "one-shot", "engine", "floor"
NETAVARK = "netavark"  # in rows of its own
COLUMNS = (REFERENCE, ONE_SHOT, ENGINE, FLOOR)

Samples = dict[str, list[float]]  # by column


@dataclass(frozen=True)
class Row:
    """One line of the table: samples by column, in `unit`."""

    key: str
    title: str
    unit: str = "ms"
    samples: Samples = field(default_factory=dict)
    # Single calls in ms, for rows whose sample is of many calls at a time.
    latencies: Samples = field(default_factory=dict)

    def add(self, column: str, sample: float, latencies: Sequence[float] = ()) -> None:
        """Append one sample."""
        self.samples.setdefault(column, []).append(round(sample, 4))
        if latencies:
            calls = self.latencies.setdefault(column, [])
            calls += [round(latency, 3) for latency in latencies]

    def median(self, column: str) -> float | None:
        """Return the median of a column, None if it was not measured."""
        samples = self.samples.get(column)
        return statistics.median(samples) if samples else None

    def p99(self, column: str) -> float | None:
        """Return the 99th percentile: of single calls in ms, else in the row's unit."""
        calls = self.latencies.get(column) or self.samples.get(column)
        return percentile(calls, 99) if calls else None

    def ratio(self, column: str, to: str) -> float | None:
        """Return the ratio of two columns' medians, None if one was not measured."""
        ours, theirs = self.median(column), self.median(to)
        return ours / theirs if ours is not None and theirs else None


@dataclass(frozen=True)
class Report:
    """The result of one run, as in docs/benchmarks.json."""

    machine: Mapping[str, str]
    rounds: int
    missing: Mapping[str, str]  # columns, with the reason
    rows: Sequence[Row]
    profile: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # ms by step

    def row(self, key: str) -> Row | None:
        """Return one row, None if it was not measured."""
        return next((row for row in self.rows if row.key == key), None)

    def to_json(self) -> str:
        """Return the content of docs/benchmarks.json: a line for each row's samples."""
        rows = ",\n".join(f"    {json.dumps(asdict(row))}" for row in self.rows)
        head = asdict(self)
        del head["rows"]
        text = json.dumps(head, indent=2).removesuffix("\n}")
        return f'{text},\n  "rows": [\n{rows}\n  ]\n}}\n'

    @staticmethod
    def from_json(text: str) -> Report:
        """Return the report that `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        return Report(**{**data, "rows": [Row(**row) for row in data["rows"]]})


def percentile(samples: Sequence[float], percent: int) -> float:
    """Return a percentile by the nearest-rank method, `percent` from 0 to 100."""
    rank = math.ceil(len(samples) * percent / 100)
    return sorted(samples)[max(rank, 1) - 1]
