"""How long each test took, and how much of a processor: build/durations/<suite>.txt."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from _pytest.terminal import TerminalReporter

PROCESSOR = "processor seconds"
_STARTED = pytest.StashKey[float]()
DIRECTORY = Path(__file__).resolve().parents[1] / "build" / "durations"


def processor_seconds() -> float:
    """Return what this process and its ended children have used of a processor so far."""
    return sum(os.times()[:4])


def note(item: pytest.Item, report: pytest.TestReport) -> None:
    """Add to the last report of a test what the test has used of a processor."""
    if report.when == "teardown":
        report.user_properties.append((PROCESSOR, processor_seconds() - item.stash[_STARTED]))


def begin(item: pytest.Item) -> None:
    """Remember what was used before a test."""
    item.stash[_STARTED] = processor_seconds()


def write(reporter: TerminalReporter) -> None:
    """Write the seconds of each test of the run and those of a processor, by suites.

    Both include set-up and clean-up. A process that outlives its test counts for none.
    """
    suites: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    reports: list[Any] = [one for found in reporter.stats.values() for one in found]
    for report in reports:
        if hasattr(report, "duration"):
            suite = report.nodeid.removeprefix("tests/").partition("/")[0]
            taken = suites[suite][report.nodeid]
            taken[0] += report.duration
            taken[1] += dict(report.user_properties).get(PROCESSOR, 0.0)
    with suppress(OSError):  # in a virtual machine the tree is read-only
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        for suite, tests in suites.items():
            lines = sorted(f"{one[0]:9.3f} {one[1]:9.3f} {name}\n" for name, one in tests.items())
            (DIRECTORY / f"{suite}.txt").write_text("".join(reversed(lines)))
