"""PROFILE of dhcp, by which lint, plan and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import IPAM, Need, Profile
from plugins.dhcp.client import releases_of
from plugins.dhcp.conf import BOTH, DEFAULT_SOCKET, IPV4, IPV6, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

# Of the networks for documentation: RFC 5737, RFC 3849.
_EXAMPLES = {
    IPV4: {"address": "198.51.100.2/24", "gateway": "198.51.100.1"},
    IPV6: {"address": "2001:db8::2/64", "gateway": "2001:db8::1"},
}
_DEFAULT_ROUTES = {IPV4: {"dst": "0.0.0.0/0"}, IPV6: {"dst": "::/0"}}


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    path = req.config.get("ipam", {}).get("daemonSocketPath") or DEFAULT_SOCKET
    yield Need("socket", path, ("ipam", "daemonSocketPath"))


def _stand_in(ipam: Json) -> Json:
    """Return what gives addresses of the same families without a server."""
    family = ipam.get("family") or IPV4
    families = (IPV4, IPV6) if family == BOTH else (family,)
    return {
        "type": "static",
        "addresses": [_EXAMPLES[one] for one in families],
        "routes": [_DEFAULT_ROUTES[one] for one in families],
    }


PROFILE = Profile(IPAM, Conf.of, _facts, stand_in=_stand_in, queues=(releases_of(DEFAULT_SOCKET),))
