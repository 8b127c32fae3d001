"""PROFILE of dummy, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import INTERFACE, Need, Profile
from plugins.dummy.conf import Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    yield Need("link", "dummy")


# The interface leads nowhere.
PROFILE = Profile(INTERFACE, Conf.of, _facts, passes_host=False)
