"""What lint and doctor know of a configuration of dhcp."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import IPAM, Need, Profile
from plugins.dhcp.conf import DEFAULT_SOCKET, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    path = req.config.get("ipam", {}).get("daemonSocketPath") or DEFAULT_SOCKET
    yield Need("socket", path, ("ipam", "daemonSocketPath"))


PROFILE = Profile(IPAM, Conf.of, _facts)
