"""The bars: ratios of medians that a run must reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import growth, reasons
from bench.netavark import PORTS
from bench.samples import ENGINE, FLOOR, NETAVARK, ONE_SHOT, REFERENCE, Report
from plugins import TYPES


@dataclass(frozen=True)
class Bar:
    """The required ratio of two columns in one row, or with `to` "" the time of one in ms."""

    row: str
    column: str
    limit: float
    to: str = REFERENCE
    at_least: bool = False  # False: the limit is a maximum

    @property
    def rule(self) -> str:
        """The limit in words."""
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{'' if self.to else ' ms'}"

    @property
    def what(self) -> str:
        """The compared figure, in words."""
        return f"{self.column} / {self.to}" if self.to else self.column

    def holds(self, ratio: float | None) -> bool:
        """Tell whether `ratio` reaches the bar; None, not measured, does not."""
        if ratio is None:
            return False
        return ratio >= self.limit if self.at_least else ratio <= self.limit


def _both(row: str, one_shot: float, engine: float, *, at_least: bool = False) -> tuple[Bar, Bar]:
    return (
        Bar(row, ONE_SHOT, one_shot, at_least=at_least),
        Bar(row, ENGINE, engine, at_least=at_least),
    )


def bars(types: Sequence[str] = TYPES) -> tuple[Bar, ...]:
    """Return the bars of a suite with the plugins `types`."""
    return (
        *_both("version", 0.4, 0.4),
        *_both("loopback.add", 3.5, 0.5),
        *_both("plain.add", 1.5, 0.4),
        *_both("masq.add", 0.65, 0.19),
        *_both("masq-dual.add", 1.2, 0.15),
        *(_both("portmap-4.add", 0.3, 0.06) if "portmap" in types else ()),
        *_both("plain.del", 1.15, 0.1),
        *_both("leases-0.add", 3.8, 0.6),
        *_both("macvlan.add", 1.5, 0.35),
        *_both("host-device.add", 0.5, 0.1),
        *_both("masq.del", 0.9, 0.3),
        *_both("at-once-32.add", 0.8, 2.7, at_least=True),
        *_both("at-once-32.del", 0.6, 2.75, at_least=True),
        Bar("at-once-32.cpu", ENGINE, 250, to=""),
        *_both("throughput.copy", 0.95, 0.95, at_least=True),
        *_both("throughput.sendfile", 0.95, 0.95, at_least=True),
        Bar("plain.add", ENGINE, 2.0, to=FLOOR),
        Bar("routes-10000.add", ENGINE, 1.0),
        Bar("routes-10000.del", ENGINE, 1.0),
        *(_many_ports() if "portmap" in types else ()),
        *(_beside_netavark() if "portmap" in types else ()),
        *(Bar(row, ENGINE, 1.3, to=FLOOR) for row in growth.rows()),
    )


def _many_ports() -> Iterator[Bar]:
    for row, limit in (("portmap-range", 200), ("portmap-scattered", 500)):
        for command in ("add", "del"):
            yield Bar(f"{row}.{command}", ENGINE, limit, to="")


def _beside_netavark() -> Iterator[Bar]:
    for ports in PORTS:
        for command in ("add", "del"):
            yield Bar(f"netavark-{ports}.{command}", ONE_SHOT, 1.0, to=NETAVARK)
            yield Bar(f"netavark-{ports}.{command}", ENGINE, 0.3, to=NETAVARK)


@dataclass(frozen=True)
class Comparison:
    """A bar, and its measurement."""

    bar: Bar
    title: str
    ratio: float | None
    limit: float | None = None  # the best ratio that physics allows, where it is known
    reason: str = ""  # for a miss

    @property
    def holds(self) -> bool:
        """Whether the bar is reached."""
        return self.bar.holds(self.ratio)

    @property
    def found(self) -> str:
        """The ratio as text."""
        return "not measured" if self.ratio is None else f"{self.ratio:.2f}"

    def __str__(self) -> str:
        """Return one line that names row, columns, ratio and limit."""
        return f"{self.title}: {self.bar.what} is {self.found}, must be {self.bar.rule}"


def compare(report: Report, types: Sequence[str] = TYPES) -> list[Comparison]:
    """Return every bar with its measurement."""
    found = []
    for bar in bars(types):
        row = report.row(bar.row)
        ratio = (
            (row.ratio(bar.column, bar.to) if bar.to else row.median(bar.column)) if row else None
        )
        why = reasons.reason(bar.row, bar.column)
        limit = why.limit(report, bar.row, bar.to) if why else None
        title = row.title if row else bar.row
        found.append(Comparison(bar, title, ratio, limit, why.why if why else ""))
    return found
