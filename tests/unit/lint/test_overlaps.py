"""Overlapping ranges: exactly those that a comparison of all pairs finds, for less work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands.lint.overlaps import Range, overlaps

_NUMBERS = st.integers(0, 40)
_RANGES = st.lists(
    st.builds(
        lambda owner, first, length: Range(owner, first, first + length),
        st.sampled_from("abc"),
        _NUMBERS,
        _NUMBERS,
    ),
    max_size=30,
)


class Counted(int):
    """A number that counts how often one is compared."""

    count = 0

    def __lt__(self, other: int) -> bool:
        Counted.count += 1
        return int(self) < int(other)

    def __le__(self, other: int) -> bool:
        Counted.count += 1
        return int(self) <= int(other)

    def __gt__(self, other: int) -> bool:
        Counted.count += 1
        return int(self) > int(other)

    def __ge__(self, other: int) -> bool:
        Counted.count += 1
        return int(self) >= int(other)

    def __neg__(self) -> Counted:
        return Counted(-int(self))


def _meet(one: Range, other: Range) -> bool:
    return one.owner != other.owner and one.first <= other.last and other.first <= one.last


@given(_RANGES)
def test_as_all_pairs(ranges: list[Range]) -> None:
    """Each range is found that any earlier one of another owner overlaps, and no other."""
    found = dict(overlaps(ranges))

    assert list(found) == [
        index
        for index, one in enumerate(ranges)
        if any(_meet(one, before) for before in ranges[:index])
    ]
    assert all(other < index for index, other in found.items())
    assert all(_meet(ranges[index], ranges[other]) for index, other in found.items())


@pytest.mark.parametrize(
    "of",
    [
        lambda n, count: (n * 10, n * 10 + 9),  # side by side
        lambda n, count: ((count - n) * 10, (count - n) * 10 + 9),  # …, downwards
        lambda n, count: (n, 2 * count - n),  # one within the other
        lambda n, count: (n % 7, n % 7 + n),  # many with one start
        lambda n, count: (n * 7919 % count, n * 7919 % count + 3),  # in no order
    ],
)
def test_comparisons(of: Callable[[int, int], tuple[int, int]]) -> None:
    """Four times the ranges cost at most six times the comparisons, not sixteen times."""

    def comparisons(count: int) -> int:
        pairs = [of(n, count) for n in range(count)]
        ranges = [Range(f"{n}", Counted(one), Counted(end)) for n, (one, end) in enumerate(pairs)]
        Counted.count = 0
        list(overlaps(ranges))
        return Counted.count

    few, many = comparisons(500), comparisons(2000)

    assert 0 < few <= 500 * 60
    assert many <= 6 * few
