"""PROFILE of tuning, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import CHAINED, Profile
from plugins.tuning.conf import Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(_req: Request) -> Iterator[Fact]:
    """Yield nothing: the kernel's sysctls differ with each namespace."""
    return iter(())


PROFILE = Profile(CHAINED, Conf.of, _facts)
