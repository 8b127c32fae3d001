"""Ranges that overlap with one that was seen before, found without a comparison of all pairs."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `first` to `last`, both inclusive; those of one owner may overlap."""

    owner: str
    first: int
    last: int


def overlaps(ranges: Sequence[Range]) -> Iterator[tuple[int, int]]:
    """Yield the index of each range that overlaps with an earlier one of another owner, and whose.

    The earlier one is that which ends last. The time grows with n log n.
    """
    starts = sorted({one.first for one in ranges})
    # A Fenwick tree over the starts: `furthest[n]` knows of a stretch of starts that ends with the
    # n-th the ranges that end last, of two owners, so that one of them is another's.
    furthest: list[tuple[int, ...]] = [()] * (len(starts) + 1)
    for index, one in enumerate(ranges):
        found = _furthest_of_another(ranges, furthest, bisect_right(starts, one.last), one.owner)
        if found is not None and ranges[found].last >= one.first:
            yield index, found
        place = bisect_right(starts, one.first)
        while place < len(furthest):
            furthest[place] = _two_furthest(ranges, index, furthest[place])
            place += place & -place


def _furthest_of_another(
    ranges: Sequence[Range], furthest: Sequence[tuple[int, ...]], place: int, owner: str
) -> int | None:
    """Return the range that ends last of those at the first `place` starts, but not `owner`'s."""
    found = None
    while place:
        for other in furthest[place]:
            if ranges[other].owner != owner:
                if found is None or ranges[other].last > ranges[found].last:
                    found = other
                break
        place -= place & -place
    return found


def _two_furthest(ranges: Sequence[Range], new: int, known: tuple[int, ...]) -> tuple[int, ...]:
    """Return of at most three ranges those of two owners that end last, the last one in front."""
    kept: list[int] = []
    for one in sorted((*known, new), key=lambda index: -ranges[index].last):
        if not kept or ranges[one].owner != ranges[kept[0]].owner:
            kept.append(one)
    return tuple(kept[:2])
