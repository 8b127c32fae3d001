"""PROFILE of ipvlan, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import INTERFACE, HostLink, Need, Profile
from plugins.ipvlan.conf import Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    yield Need("link", "ipvlan")
    master = req.config.get("master")
    if master and not req.config.get("linkInContainer"):
        yield HostLink(master, ("master",))


# Packets go to the master's network, past the host's firewall.
# The master may be the interface of the plugin before.
PROFILE = Profile(INTERFACE, Conf.of, _facts, passes_host=False, may_follow=True)
