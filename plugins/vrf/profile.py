"""PROFILE of vrf, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import CHAINED, Need, Profile
from plugins.vrf.conf import Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(_req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    yield Need("link", "vrf")


PROFILE = Profile(CHAINED, Conf.of, _facts)
