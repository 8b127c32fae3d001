"""PROFILE of vlan, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import INTERFACE, HostLink, Need, Profile
from plugins.vlan.conf import Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    yield Need("link", "vlan", module="8021q")
    master = req.config.get("master")
    if master and not req.config.get("linkInContainer"):
        yield HostLink(master, ("master",))


# Packets go to the master's network, past the host's firewall.
PROFILE = Profile(INTERFACE, Conf.of, _facts, passes_host=False)
