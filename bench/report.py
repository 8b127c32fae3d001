"""The table, the page docs/benchmarks.md and its charts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from bench import plot, verdict
from bench.experiments import LEASES
from bench.plot import number
from bench.samples import COLUMNS, ENGINE, FLOOR, NETAVARK, ONE_SHOT, REFERENCE, Report, Row

JSON, PAGE, BARS, CURVE, NETAVARK_BARS = (
    "benchmarks.json",
    "benchmarks.md",
    "benchmarks.svg",
    "benchmarks-leases.svg",
    "benchmarks-netavark.svg",
)
_HEAD = ("", *COLUMNS, "one-shot / ref.", "engine / ref.", "engine / floor")
_RATIOS = ((ONE_SHOT, REFERENCE), (ENGINE, REFERENCE), (ENGINE, FLOOR))
_WORDS = "reason"  # the column that is text
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
    found = {
        JSON: report.to_json(),
        PAGE: page(report),
        BARS: _bar_chart(report),
        CURVE: _lease_chart(report),
    }
    return found | ({NETAVARK_BARS: _netavark_chart(report)} if _of_netavark(report) else {})


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
        netavark=_beside_netavark(report),
        profile="\n\n".join(map(_markdown, _profile_tables(report))),
    )


def text(report: Report) -> str:
    """Return the tables for a terminal."""
    lines = []
    for table in (
        _table(report),
        _netavark_table(report),
        *_profile_tables(report),
        _bar_table(report),
    ):
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
    others = [row for row in report.rows if NETAVARK not in row.samples]
    for row in sorted(others, key=lambda row: units.index(row.unit)):
        ratios = [_ratio(row.ratio(column, to)) for column, to in _RATIOS]
        rows.append(
            [f"{row.title}, {row.unit}", *(_cell(row, column) for column in COLUMNS), *ratios]
        )
    return rows


def _bar_table(report: Report) -> list[list[str]]:
    rows = [["", "ratio", "must be", "is", "reached", "limit", _WORDS]]
    for one in verdict.compare(report):
        because = ["", ""] if one.holds else [_ratio(one.limit), one.reason]
        reached = "yes" if one.holds else "NO"
        rows.append([one.title, one.bar.what, one.bar.rule, one.found, reached, *because])
    return rows


def _of_netavark(report: Report) -> list[Row]:
    return [row for row in report.rows if NETAVARK in row.samples]


def _netavark_table(report: Report) -> list[list[str]]:
    columns = (REFERENCE, NETAVARK, ONE_SHOT, ENGINE)
    ratios = (ONE_SHOT, ENGINE)
    rows = [["", *columns, *(f"{column} / {NETAVARK}" for column in ratios)]]
    for row in _of_netavark(report):
        cells = [_cell(row, column) for column in columns]
        found = [_ratio(row.ratio(column, NETAVARK)) for column in ratios]
        rows.append([f"{row.title}, {row.unit}", *cells, *found])
    return rows


def _beside_netavark(report: Report) -> str:
    """Return the section's chart and table; a sentence where there is nothing to show."""
    if not _of_netavark(report):
        return "It is not in this run."
    chart = f"![Time of one call, beside netavark]({NETAVARK_BARS})"
    return f"{chart}\n\n{_markdown(_netavark_table(report))}"


def _netavark_chart(report: Report) -> str:
    groups = []
    for row in _of_netavark(report):
        medians = {one: row.median(one) for one in (REFERENCE, NETAVARK, ONE_SHOT, ENGINE)}
        known = {column: median for column, median in medians.items() if median is not None}
        groups.append((row.title.removesuffix(", beside netavark"), known))
    return plot.bars("Time of one call beside netavark, medians, shorter is better", groups, "ms")


def _cell(row: Row, column: str) -> str:
    median, p99 = row.median(column), row.p99(column)
    if median is None or p99 is None:
        return "-"
    return f"{number(median)} ({number(p99)}{' ms' if row.latencies else ''})"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    marks = ["---", *("---" if title == _WORDS else "---:" for title in head[1:])]
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
