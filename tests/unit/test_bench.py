"""bench/: its statistics, its verdict, its page, and that it times functions which exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import netavark, report
from bench.__main__ import main
from bench.networks import Attachment, Network, Variant
from bench.plot import bars as bar_chart
from bench.plot import curve
from bench.profile import STEPS, resolve
from bench.samples import ENGINE, FLOOR, NETAVARK, ONE_SHOT, REFERENCE, Report, Row, percentile
from bench.verdict import Bar, bars, compare
from plugins import TYPES

ROOT = Path(__file__).resolve().parents[2]


def row_with(ratio: float, key: str = "row") -> Row:
    """Return a row in which one-shot and engine have `ratio` to the reference and the floor."""
    row = Row(key, f"title of {key}")
    for column, value in ((REFERENCE, 10), (ONE_SHOT, 10 * ratio), (ENGINE, 10 * ratio)):
        row.add(column, value)
    row.add(FLOOR, 10)
    return row


def report_of(*rows: Row, **missing: str) -> Report:
    """Return a report that consists of `rows`."""
    return Report({"kernel": "6.1"}, 1, missing, rows, {"ADD, warm": {"a step": 1.5}})


def perfect() -> Report:
    """Return a report that reaches every bar, each just so."""
    rows: dict[str, Row] = {}
    for bar in bars():
        row = rows.setdefault(bar.row, Row(bar.row, bar.row))
        if REFERENCE not in row.samples:
            row.add(REFERENCE, 100)
        if not bar.to:
            row.add(bar.column, bar.limit)
        elif bar.to in (REFERENCE, NETAVARK):
            row.samples.setdefault(bar.to, [100.0])
            row.add(bar.column, 100 * bar.limit)
        else:
            (ours, *_) = row.samples.setdefault(bar.column, [100.0])
            row.add(bar.to, ours / bar.limit)
    return report_of(*rows.values())


class TestStatistics:
    """Medians, percentiles and ratios."""

    @pytest.mark.parametrize(
        ("samples", "percent", "expected"),
        [
            ([7.0], 99, 7.0),
            ([3.0, 1.0, 2.0], 50, 2.0),
            ([float(number) for number in range(1, 101)], 99, 99.0),
            ([float(number) for number in range(1, 102)], 99, 100.0),
            ([1.0, 2.0], 0, 1.0),
        ],
    )
    def test_percentile(self, samples: list[float], percent: int, expected: float) -> None:
        """The nearest rank is a sample that was measured, never one between two."""
        assert percentile(samples, percent) == expected

    def test_median(self) -> None:
        """One slow call does not move the median, and p99 shows it."""
        row = Row("key", "title")
        for sample in (2.0, 900.0, 1.0, 3.0, 2.5):
            row.add(ENGINE, sample)

        assert (row.median(ENGINE), row.p99(ENGINE)) == (2.5, 900.0)

    def test_latencies(self) -> None:
        """Where a sample is that of many calls, p99 is that of the calls."""
        row = Row("key", "title", "per second")
        row.add(ENGINE, 50.0, [4.0, 9.0])
        row.add(ENGINE, 60.0, [5.0, 6.0])

        assert (row.median(ENGINE), row.p99(ENGINE)) == (55.0, 9.0)

    def test_absent(self) -> None:
        """A column that was not measured has neither median nor ratio."""
        row = Row("key", "title")
        row.add(REFERENCE, 4.0)

        found = row.median(ENGINE), row.p99(ENGINE), row.ratio(ENGINE, REFERENCE)
        assert found == (None, None, None)
        assert row.ratio(REFERENCE, ENGINE) is None

    def test_json(self) -> None:
        """The raw numbers, read again, are the report that they were written from."""
        written = report_of(row_with(0.5), row_with(2.0, "other"), engine="not there")

        again = Report.from_json(written.to_json())

        assert again.to_json() == written.to_json()
        assert (again.rows, again.missing) == (list(written.rows), {"engine": "not there"})


class TestVerdict:
    """The bars that must be reached."""

    @pytest.mark.parametrize(
        ("ratio", "at_least", "holds"),
        [
            (0.99, False, True),
            (1.0, False, True),
            (1.01, False, False),
            (0.99, True, False),
            (1.0, True, True),
            (1.01, True, True),
            (None, False, False),
            (None, True, False),
        ],
    )
    def test_bar(self, ratio: float | None, *, at_least: bool, holds: bool) -> None:
        """The limit itself is reached; a value that was not measured is missed."""
        assert Bar("row", ENGINE, 1.0, at_least=at_least).holds(ratio) is holds

    def test_reached(self) -> None:
        """A run that reaches every limit just so misses none."""
        assert [str(one) for one in compare(perfect()) if not one.holds] == []

    @pytest.mark.parametrize("place", range(len(bars())))
    def test_missed(self, place: int) -> None:
        """Each limit counts: where one ratio is worse, that bar is missed, and named."""
        bar = bars()[place]
        found = perfect()
        row = found.row(bar.row)
        assert row is not None
        worse = 0.9 if bar.at_least else 1.1
        if bar.to in (REFERENCE, NETAVARK, ""):
            row.samples[bar.column] = [row.samples[bar.column][0] * worse]
        else:
            row.samples[bar.to] = [row.samples[bar.to][0] / worse]

        missed = {one.bar: str(one) for one in compare(found) if not one.holds}

        assert bar in missed
        assert {one.row for one in missed} == {bar.row}
        assert bar.row in missed[bar]
        assert bar.rule in missed[bar]

    def test_not_measured(self) -> None:
        """Without the engine's column all its bars are missed, and no other."""
        found = perfect()
        for row in found.rows:
            row.samples.pop(ENGINE, None)

        missed = [one for one in compare(found) if not one.holds]

        assert [one.bar for one in missed] == [bar for bar in bars() if bar.column == ENGINE]
        assert all("not measured" in str(one) for one in missed)

    def test_portmap(self) -> None:
        """portmap is compared as soon as the suite has it, and only then."""
        without = {bar.row for bar in bars(("bridge",))}
        with_it = {bar.row for bar in bars(("bridge", "portmap"))}

        many = {
            f"portmap-{key}.{call}" for key in ("range", "scattered") for call in ("add", "del")
        }
        beside = {f"netavark-{ports}.{call}" for ports in (0, 4) for call in ("add", "del")}
        assert with_it - without == {"portmap-4.add", *many, *beside}

    def test_reasons(self) -> None:
        """Each bar has a reason for a miss, and the page has limit and reason of those missed."""
        row = row_with(0.7, "plain.add")
        row.samples[FLOOR] = [1.0]
        version = Row("version", "VERSION")
        version.add(ENGINE, 0.5)

        found = {one.bar: one for one in compare(report_of(row, version))}

        assert [bar for bar in bars() if not found[bar].reason] == []
        engine = found[Bar("plain.add", ENGINE, 0.4)]
        assert engine.limit == pytest.approx(0.15)  # launcher and floor, of ten
        cells = [
            "title of plain.add",
            "engine / reference",
            "≤ 0.4",
            "0.70",
            "NO",
            "0.15",
            engine.reason,
        ]
        line = f"| {' | '.join(cells)} |"
        assert line in report.page(report_of(row, version)).splitlines()

    def test_limit_of_many(self) -> None:
        """Of calls per second the limit is a ratio of these, too."""
        row = Row("at-once-32.add", "title", "per second")
        for column, value in ((REFERENCE, 100.0), (ENGINE, 200.0), (FLOOR, 800.0)):
            row.add(column, value)

        found = {one.bar.column: one for one in compare(report_of(row)) if one.bar.row == row.key}

        assert found[ENGINE].limit == pytest.approx(8.0)
        assert found[ONE_SHOT].limit == found[ENGINE].limit  # of any plugin

    def test_status(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The command fails, and names what was missed, only when something was."""
        found = []
        for content in (perfect(), report_of(row_with(2.0, "version"))):
            (tmp_path / report.JSON).write_text(content.to_json())
            found.append((main(["--render", "--output", str(tmp_path)]), capsys.readouterr().err))

        (good, nothing), (bad, missed) = found
        assert (good, nothing, bad) == (0, "", 1)
        assert "title of version: one-shot / reference is 2.00, must be ≤ 0.4" in missed
        assert "masq.add: engine / reference is not measured, must be ≤ 0.19" in missed


class TestPage:
    """The report."""

    def test_table(self) -> None:
        """A row shows medians with p99, a dash where there is nothing, and ratios."""
        row = row_with(0.5)
        del row.samples[FLOOR]

        lines = report.page(report_of(row)).splitlines()

        expected = (
            "| title of row, ms | 10.0 (10.0) | 5.00 (5.00) | 5.00 (5.00) | - | 0.50 | 0.50 | - |"
        )
        assert expected in lines

    def test_missing(self) -> None:
        """A column that is missing is missed in words, with the reason."""
        page = report.page(report_of(row_with(1.0), engine="it ended"))

        assert "There is no column `engine` in this run: it ended." in page

    def test_netavark(self) -> None:
        """Its rows have a table and a chart of their own; without them the page says so."""
        row = row_with(0.5, "netavark-0.add")
        row.add(NETAVARK, 20)
        one = report_of(row)

        line = (
            "| title of netavark-0.add, ms | 10.0 (10.0) | 20.0 (20.0) | 5.00 (5.00) | 5.00 (5.00)"
        )
        assert f"{line} | 0.25 | 0.25 |" in report.page(one).splitlines()
        assert ">20.0<" in report.files(one)["benchmarks-netavark.svg"]
        without = report_of(row_with(0.5), netavark="the program is not there")
        assert "It is not in this run." in report.page(without)
        assert "benchmarks-netavark.svg" not in report.files(without)

    def test_current(self) -> None:
        """The files in docs/ are those of the raw numbers beside them."""
        docs = ROOT / "docs"
        found = Report.from_json((docs / report.JSON).read_text())

        for name, content in report.files(found).items():
            assert (docs / name).read_text() == content, f"run: python -m bench --render ({name})"

    def test_no_names(self) -> None:
        """Neither host names nor paths of a machine are in the raw numbers."""
        data = json.loads((ROOT / "docs" / report.JSON).read_text())
        texts = [*data["machine"].values(), *data["missing"].values()]

        assert [text for text in texts if "/" in text and not text.startswith("v")] == []

    def test_bars(self) -> None:
        """A bar is as long as its value, and names are escaped."""
        chart = bar_chart("a < b", [("x & y", {REFERENCE: 10.0, ENGINE: 5.0})], "ms")

        root = ElementTree.fromstring(chart)
        shapes = root.findall("{*}rect[@height='11']")
        reference, engine = (float(shape.attrib["width"]) for shape in shapes)
        assert reference == pytest.approx(2 * engine)
        assert "x & y" in [text.text for text in root.findall("{*}text")]

    def test_curve(self) -> None:
        """Ten times the value is as far up as ten times that; nothing measured is no line."""
        chart = curve("title", [0, 1, 2], {REFERENCE: [1.0, 10.0, 100.0], ENGINE: []}, "ms")

        lines = ElementTree.fromstring(chart).findall("{*}polyline")
        points = [point.split(",") for point in lines[0].attrib["points"].split()]
        first, second, third = (float(y) for _, y in points)
        assert first - second == pytest.approx(second - third) != 0
        assert lines[1].attrib["points"] == ""


class TestProfile:
    """The commands that are timed."""

    @pytest.mark.parametrize("name", [name for steps in STEPS.values() for name in steps])
    def test_steps(self, name: str) -> None:
        """Every function that the profile times exists under that name."""
        holder, attribute = resolve(name)

        assert callable(getattr(holder, attribute))


def test_call_of_netavark(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the same bridge, subnet and host ports, and its path by a variable."""
    monkeypatch.setenv("NETAVARK", "/opt/netavark")
    variant = Variant(masquerade="iptables", ports=2)
    network = Network("net", NETAVARK, Path(), variant)

    call = netavark.call("DEL", Attachment(network, "/run/netns/c0", f"{7:064x}"))

    assert call.program == Path("/opt/netavark")
    assert call.arguments[-2:] == ("teardown", "/run/netns/c0")
    options = json.loads(call.stdin)
    assert [one["host_port"] for one in options["port_mappings"]] == [20000, 20001]
    assert options["networks"]["net"]["static_ips"] == ["10.24.1.7"]
    subnet = {"subnet": "10.24.0.0/16", "gateway": "10.24.0.1"}
    assert options["network_info"]["net"]["subnets"] == [subnet]


def test_types() -> None:
    """The plugins that the rows call are in the suite."""
    assert {"bridge", "host-local", "loopback"} <= set(TYPES)


def test_the_figures_of_the_readme_are_those_of_the_page() -> None:
    """README has five rows of docs/benchmarks.md, without the values in brackets."""

    def rows(text: str, columns: int) -> set[tuple[str, ...]]:
        lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
        cells = [[re.sub(r" \(.*\)", "", cell.strip()) for cell in line] for line in lines]
        return {tuple(line[:4]) for line in cells if len(line) == columns and line[1][:1].isdigit()}

    readme = rows((ROOT / "README.md").read_text(), 4)

    assert len(readme) == 5
    assert readme <= rows((ROOT / "docs/benchmarks.md").read_text(), 8)
