"""PROFILE of firewall, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import ADDRESSES, CHAINED, HOST_PATH, Advice, Need, Profile
from plugins.firewall.conf import FIREWALLD, IPTABLES, NFTABLES, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    backend = req.config.get("backend")
    if req.config.get("firewalldZone") and backend in (NFTABLES, IPTABLES):
        yield Advice(
            "L505",
            ("firewalldZone",),
            f'"firewalldZone" does nothing while "backend" is "{backend}"',
        )
    if backend == FIREWALLD:
        yield Need("firewalld", "", ("backend",))
    else:
        yield Need(backend or NFTABLES, "filter", ("backend",))


PROFILE = Profile(CHAINED, Conf.of, _facts, needs=(ADDRESSES, HOST_PATH), admits=True)
