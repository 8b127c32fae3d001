"""How long each test took: build/durations/<suite>.txt, for `make slowest`."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from _pytest.terminal import TerminalReporter

DIRECTORY = Path(__file__).resolve().parents[1] / "build" / "durations"


def write(reporter: TerminalReporter) -> None:
    """Write the seconds of each test of the run, set-up and clean-up included, by suites."""
    suites: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    reports: list[Any] = [one for found in reporter.stats.values() for one in found]
    for report in reports:
        if hasattr(report, "duration"):
            suite = report.nodeid.removeprefix("tests/").partition("/")[0]
            suites[suite][report.nodeid] += report.duration
    with suppress(OSError):  # in a virtual machine the tree is read-only
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        for suite, tests in suites.items():
            lines = sorted(f"{seconds:9.3f} {name}\n" for name, seconds in tests.items())
            (DIRECTORY / f"{suite}.txt").write_text("".join(reversed(lines)))
