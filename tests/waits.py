"""Waiting: for what is to happen, with a generous bound; for what is not, longer if all is busy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

GENEROUS = 120.0  # seconds: only a failure makes a test wait so long


def wait_until(
    condition: Callable[[], object],
    what: str | Callable[[], str],
    seconds: float = GENEROUS,
    pause: float = 0.005,
) -> None:
    """Wait until something is so, with a pause of so many seconds between two looks.

    Raises AssertionError, which says `what` is wrong otherwise.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(pause)


def longer_if_busy(seconds: float) -> float:
    """Return the time after which an answer that did not come will not come.

    `seconds` are those of a machine on which two processes at most want each processor.
    """
    return seconds * min(4.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1) / 2))
