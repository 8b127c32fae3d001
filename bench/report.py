"""The table, the page docs/benchmarks.md and its charts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from bench import plot, verdict
from bench.experiments import LEASES
from bench.plot import number
from bench.samples import COLUMNS, ENGINE, FLOOR, ONE_SHOT, REFERENCE, Report, Row

JSON, PAGE, BARS, CURVE = (
    "benchmarks.json",
    "benchmarks.md",
    "benchmarks.svg",
    "benchmarks-leases.svg",
)
_HEAD = ("", *COLUMNS, "one-shot / ref.", "engine / ref.", "engine / floor")
_RATIOS = ((ONE_SHOT, REFERENCE), (ENGINE, REFERENCE), (ENGINE, FLOOR))
_IN_CHART = (
    "version",
    "loopback.add",
    "plain.add",
    "plain.del",
    "dual.add",
    "masq.add",
    "masq.del",
    "masq-dual.add",
    "portmap-4.add",
)


def write(report: Report, directory: Path) -> None:
    """Write the page, its charts and the raw numbers into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files(report).items():
        (directory / name).write_text(content)


def files(report: Report) -> dict[str, str]:
    """Return the content of every file by its name."""
    return {
        JSON: report.to_json(),
        PAGE: page(report),
        BARS: _bar_chart(report),
        CURVE: _lease_chart(report),
    }


def page(report: Report) -> str:
    """Return docs/benchmarks.md: bench/template.md with this run's figures."""
    template = Template(Path(__file__).with_name("template.md").read_text())
    return template.substitute(
        machine="\n".join(f"- {name}: {value}" for name, value in report.machine.items()),
        rounds=report.rounds,
        missing="".join(
            f"\nThere is no column `{name}` in this run: {reason}.\n"
            for name, reason in report.missing.items()
        ),
        bars=_markdown(_bar_table(report)),
        table=_markdown(_table(report)),
        profile="\n\n".join(map(_markdown, _profile_tables(report))),
    )


def text(report: Report) -> str:
    """Return the tables for a terminal."""
    lines = []
    for table in (_table(report), *_profile_tables(report), _bar_table(report)):
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        for row in table:
            first, *rest = row
            cells = [first.ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
            lines.append("  ".join(cells).rstrip())
        lines.append("")
    return "\n".join(lines)


def _table(report: Report) -> list[list[str]]:
    rows = [list(_HEAD)]
    units = ("ms", "per second", "Gbit/s", "times", "ms CPU", "MB peak")
    for row in sorted(report.rows, key=lambda row: units.index(row.unit)):
        ratios = [_ratio(row.ratio(column, to)) for column, to in _RATIOS]
        rows.append(
            [f"{row.title}, {row.unit}", *(_cell(row, column) for column in COLUMNS), *ratios]
        )
    return rows


def _bar_table(report: Report) -> list[list[str]]:
    rows = [["", "ratio", "must be", "is", "reached"]]
    for one in verdict.compare(report):
        rows.append(
            [one.title, one.bar.what, one.bar.rule, one.found, "yes" if one.holds else "NO"]
        )
    return rows


def _cell(row: Row, column: str) -> str:
    median, p99 = row.median(column), row.p99(column)
    if median is None or p99 is None:
        return "-"
    return f"{number(median)} ({number(p99)}{' ms' if row.latencies else ''})"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, marks, *rows))


def _profile_tables(report: Report) -> Iterator[list[list[str]]]:
    for title, steps in report.profile.items():
        whole = sum(steps.values())
        rows = [[step, number(ms), f"{ms / whole:.0%}"] for step, ms in steps.items()]
        yield [[title, "ms", ""], *rows, ["together", number(whole), ""]]


def _bar_chart(report: Report) -> str:
    groups = []
    for row in filter(None, map(report.row, _IN_CHART)):
        medians = {column: row.median(column) for column in COLUMNS}
        known = {column: median for column, median in medians.items() if median is not None}
        groups.append((row.title, known))
    return plot.bars("Time of one call, medians, shorter is better", groups, "ms")


def _lease_chart(report: Report) -> str:
    rows = [report.row(f"leases-{present}.add") for present in LEASES]
    lines = {}
    for column in COLUMNS:
        medians = [row.median(column) if row else None for row in rows]
        known = [median for median in medians if median is not None]
        if len(known) == len(LEASES):
            lines[column] = known
    return plot.curve("host-local ADD by leases present", LEASES, lines, "ms")
