"""PROFILE of ptp, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import INTERFACE, Need, Profile, without_effect
from plugins.ptp.conf import Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    masquerades = bool(req.config.get("ipMasq"))
    yield from without_effect(req.config, ("ipMasqBackend", '"ipMasq"', masquerades))
    yield Need("link", "veth")
    yield Need("forwarding", "")
    if masquerades:
        yield Need(req.config.get("ipMasqBackend", "nftables"), "nat", ("ipMasq",))


PROFILE = Profile(INTERFACE, Conf.of, _facts)
