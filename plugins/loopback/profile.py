"""PROFILE of loopback, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import INTERFACE, Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _parse(_req: Request) -> None:
    """Refuse nothing: the plugin has no keys of its own."""


def _facts(_req: Request) -> Iterator[Fact]:
    """Yield nothing: `lo` is in every namespace."""
    return iter(())


PROFILE = Profile(INTERFACE, _parse, _facts, is_network=False, passes_host=False)
