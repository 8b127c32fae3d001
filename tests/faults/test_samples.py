"""The samples that make test takes of the calls of a sweep."""

from __future__ import annotations

import pytest

from tests.faults.rig import TURNS, sample_of

CALLS = [*["openat a"] * 25, *["write b"] * 9, "rename c", *["sendto d"] * 3, "openat e"]


@pytest.mark.parametrize("first", [0, 739_000])
def test_eight_days_have_all(first: int) -> None:
    """Each call is in a sample of TURNS days in a row."""
    samples = [sample_of(CALLS, day) for day in range(first, first + TURNS)]

    assert set().union(*samples) == set(range(1, len(CALLS) + 1))


@pytest.mark.parametrize("day", range(TURNS))
def test_each_day_has_each_kind(day: int) -> None:
    """No kind of call is left out, and much fewer calls than all are taken."""
    sample = sample_of(CALLS, day)

    kinds = {CALLS[number - 1].partition(" ")[0] for number in sample}
    assert kinds == {"openat", "write", "rename", "sendto"}
    assert len(sample) <= len(CALLS) / TURNS + len(kinds)


def test_the_limit() -> None:
    """With a limit so many are taken, and in the end each one."""
    samples = [sample_of(CALLS, day, most=2) for day in range(200)]

    assert {len(sample) for sample in samples} == {2}
    assert set().union(*samples) == set(range(1, len(CALLS) + 1))
