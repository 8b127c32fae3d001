"""PROFILE of sbr, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import ADDRESSES, CHAINED, Need, Profile
from plugins.sbr.conf import Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(_req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    yield Need("rules", "policy routing")


PROFILE = Profile(CHAINED, Conf.of, _facts, needs=(ADDRESSES,))
