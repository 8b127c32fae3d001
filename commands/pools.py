"""Addresses of ranges: how many are given out, and how many are free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands.exposition import GAUGE, Family

if TYPE_CHECKING:
    from collections.abc import Iterable

USED, FREE = "used", "free"


def addresses(counts: Iterable[tuple[str, int, int]]) -> Family:
    """Return the metric of ranges, each with the number of its leases, and of all its addresses."""
    family = Family("pycni_ipam_addresses", "Addresses of this node's ranges.", GAUGE)
    for text, used, size in counts:
        family.add(used, range=text, state=USED)
        family.add(max(size - used, 0), range=text, state=FREE)
    return family
