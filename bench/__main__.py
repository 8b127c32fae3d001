"""Measure the suite beside the Go reference plugins and write docs/benchmarks.md.

tests/in-sandbox .venv/bin/python -m bench [--rounds N] [--bin-dir DIR] [--output DIR]
.venv/bin/python -m bench --render      writes the page anew, from the numbers of the last run
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import columns, experiments, netavark, report, verdict
from bench.columns import ROOT, BenchError, Column
from bench.experiments import Bench
from bench.machine import description
from bench.profile import profiles
from bench.samples import ENGINE, FLOOR, NETAVARK, ONE_SHOT, REFERENCE, Report

_REFERENCE = ROOT / ".tools" / "reference"
_CNITOOL = ROOT / ".tools" / "bin" / "cnitool"


def main(words: Sequence[str]) -> int:
    """Measure or render; return 1 if a bar is missed, 2 if nothing could be measured."""
    options = _options(words)
    if options.render:
        found = Report.from_json((options.output / report.JSON).read_text())
    else:
        try:
            found = measure(
                options.bin_dir.resolve(), options.rounds, quick=options.quick, only=options.only
            )
        except BenchError as error:
            sys.stderr.write(f"\nbench: {error}\n")
            return 2
    report.write(found, options.output)
    sys.stdout.write(report.text(found))
    missed = [one for one in verdict.compare(found) if not one.holds]
    for one in missed:
        sys.stderr.write(f"bench: missed: {one}\n")
    return 1 if missed and not options.no_verdict else 0


def measure(bin_dir: Path, rounds: int, *, quick: bool, only: Sequence[str]) -> Report:
    """Return the report of one run; a quick run skips long experiments.

    `only`: names of experiments; none: all that this machine's kernel can do.
    """
    missing: dict[str, str] = {}
    machine = description(_REFERENCE, netavark.program(), bin_dir)
    with tempfile.TemporaryDirectory() as directory:
        programs = {name: columns.compiled(name, Path(directory)) for name in ("driver", FLOOR)}
        experiments.prepare()
        with (
            _columns(bin_dir, programs["driver"], missing) as present,
            _peer(programs["driver"], missing) as peer,
        ):
            bench = Bench(present, programs[FLOOR], _CNITOOL, rounds, peer)
            for name, run in experiments.experiments().items():
                is_skipped = (quick and name in experiments.SLOW) or experiments.lacks(name)
                if name in only or not (only or is_skipped):
                    run(bench)
            steps = {} if only else profiles(bench)
        return Report(machine, rounds, missing, list(bench.rows.values()), steps)


@contextmanager
def _columns(bin_dir: Path, driver: Path, missing: dict[str, str]) -> Iterator[list[Column]]:
    """Start and warm up the columns; put the reason of each missing column into `missing`."""
    with ExitStack() as stack:
        found = []
        for name, directory in ((REFERENCE, _REFERENCE), (ONE_SHOT, bin_dir), (ENGINE, bin_dir)):
            column = Column(name, directory, driver)
            stack.callback(column.close)
            try:
                if name == ENGINE:
                    column.start_engine()
                    experiments.warm_up(column)
            except BenchError as error:
                missing[name] = str(error)
                sys.stderr.write(f"no column '{name}': {error}\n")
            else:
                found.append(column)
        yield found


@contextmanager
def _peer(driver: Path, missing: dict[str, str]) -> Iterator[Column | None]:
    """Give netavark's column, or None and the reason in `missing`."""
    try:
        column = netavark.column(driver)
    except BenchError as error:
        missing[NETAVARK] = str(error)
        sys.stderr.write(f"no column '{NETAVARK}': {error}\n")
        yield None
        return
    try:
        yield column
    finally:
        column.close()


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--bin-dir", type=Path, default=columns.default_bin_dir())
    parser.add_argument("--rounds", type=int, default=100, help="how often each call is made")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="where reports go")
    parser.add_argument("--quick", action="store_true", help="leave out what takes long")
    parser.add_argument("--only", nargs="+", default=(), help="these experiments alone")
    parser.add_argument("--render", action="store_true", help="write the page of the last run anew")
    parser.add_argument("--no-verdict", action="store_true", help="succeed when bars are missed")
    found = parser.parse_args(words)
    if found.only and found.output == parser.get_default("output"):
        parser.error("--only needs --output: the page is about all experiments")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
