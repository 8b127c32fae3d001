"""Which plugins are ours, each imported on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cni_common.node.host import Plugin

TYPES = (
    "bandwidth",
    "bridge",
    "firewall",
    "host-local",
    "loopback",
    "portmap",
    "ptp",
    "static",
    "tuning",
)


def load(type: str) -> Plugin | None:
    """Return the module of the plugin `type`, or None when it is not ours.

    Each import is spelled out: mypy checks the module against Plugin, and a frozen build finds it.
    """
    match type:
        case "bandwidth":
            import plugins.bandwidth

            return plugins.bandwidth
        case "bridge":
            import plugins.bridge

            return plugins.bridge
        case "firewall":
            import plugins.firewall

            return plugins.firewall
        case "host-local":
            import plugins.host_local

            return plugins.host_local
        case "loopback":
            import plugins.loopback

            return plugins.loopback
        case "portmap":
            import plugins.portmap

            return plugins.portmap
        case "ptp":
            import plugins.ptp

            return plugins.ptp
        case "static":
            import plugins.static

            return plugins.static
        case "tuning":
            import plugins.tuning

            return plugins.tuning
        case _:
            return None


def load_all() -> None:
    """Import every plugin, and all that their functions import when it is needed.

    For a process that stays: an upgrade may take the files away.
    """
    from cni_common.node import liveness as _  # noqa: F401 - as above
    from plugins import (  # noqa: F401 - as above
        bandwidth,
        bridge,
        firewall,
        loopback,
        portmap,
        ptp,
        static,
        tuning,
    )
    from plugins.bandwidth import drift  # noqa: F401 - as above
    from plugins.firewall import firewalld, survey  # noqa: F401 - as above
    from plugins.host_local import capacity, collect, expiry, reclaim, resolv, sweep  # noqa: F401 - as above
    from plugins.host_local.index import rebuild  # noqa: F401 - as above
    from plugins.portmap import conditions, iptables  # noqa: F401 - as above
