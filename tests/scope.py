"""How much runs: in `make test` a sample that changes by the day, in `make test-all` everything.

PYCNI_TEST_ALL=1: everything, namely every test on both edges, each step of each sweep of failures,
and the Go plugins beside ours instead of their golden answers. PYCNI_TEST_UPSTREAM=1: all groups of
Kubernetes' own tests, hours that `make test-upstream` has for itself. PYCNI_TEST_SEED repeats the
sample of another day.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, date, datetime
from zlib import crc32

_ENVIRON = os.environ  # noqa: TID251 - where the developer and the Makefile choose
ALL, UPSTREAM = (
    _ENVIRON.get(name, "") not in ("", "0") for name in ("PYCNI_TEST_ALL", "PYCNI_TEST_UPSTREAM")
)
MANY, PART = 4, 2  # of a test with MANY cases one in PART runs each day
WHOLE = frozenset({"unit", "kubernetes", "kind"})  # but not of these suites
# Set for the processes that run the tests: none of them shall have another day.
SEED = _ENVIRON.setdefault("PYCNI_TEST_SEED", datetime.now(UTC).date().isoformat())
HEADER = (
    "scope: everything (PYCNI_TEST_ALL)"
    if ALL
    else f"scope: a sample, repeated by PYCNI_TEST_SEED={SEED}; PYCNI_TEST_ALL=1 runs everything"
)


def turn() -> int:
    """Return a number that is one more each day; a seed that is no date has one of its own."""
    try:
        return date.fromisoformat(SEED).toordinal()
    except ValueError:
        return crc32(SEED.encode())


def one_in(part: int, names: Sequence[str]) -> set[str]:
    """Return one in `part` of the names, at least one; which ones depends on the day."""
    shuffled = sorted(names, key=lambda name: crc32(f"{SEED} {name}".encode()))
    return set(shuffled[: max(1, len(shuffled) // part)])


def one_of_each(kinds: Sequence[str]) -> list[int]:
    """Return the positions of one entry of each kind, in order; which one depends on the day."""
    positions: dict[str, list[int]] = {}
    for position, kind in enumerate(kinds):
        positions.setdefault(kind, []).append(position)
    return sorted(
        found[crc32(f"{SEED} {kind}".encode()) % len(found)] for kind, found in positions.items()
    )
