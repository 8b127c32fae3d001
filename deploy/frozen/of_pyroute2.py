"""pyroute2's `__init__` in the bundle and in the agent: a class is loaded when it is first used.

The package's own loads all that it has, from Wi-Fi to disk quotas: half a megabyte.
"""

from __future__ import annotations

from typing import Any

NAMES = ("Conntrack", "DiagSocket", "IPRoute", "WireGuard")  # what the suite takes from `pyroute2`


def __getattr__(name: str) -> Any:
    """Return a class of NAMES. Raises AttributeError, after which Python looks for a module."""
    if name == "Conntrack":
        from pyroute2.conntrack import Conntrack

        return Conntrack
    if name == "DiagSocket":
        from pyroute2.netlink.diag import DiagSocket

        return DiagSocket
    if name == "IPRoute":
        from pyroute2.iproute import IPRoute

        return IPRoute
    if name == "WireGuard":
        from pyroute2.netlink.generic.wireguard import WireGuard

        return WireGuard
    raise AttributeError(name)
