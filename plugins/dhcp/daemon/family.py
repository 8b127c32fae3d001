"""The two DHCPs, as the upkeep of a lease needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugins.dhcp.daemon import v4, v6

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.spec.names import Cidr
    from plugins.dhcp.daemon import link
    from plugins.dhcp.daemon.machine import Lease, Machine, Pace, Send
    from plugins.dhcp.daemon.store import Entry

    class Family(Protocol):
        """The functions of plugins.dhcp.daemon.v4 and v6, described there."""

        VERIFIES_AT_START: bool  # a daemon that was restarted asks about its leases

        def talk_over(self, netns: NetNS, ours: Link, /) -> link.Talk: ...
        def machine_of(
            self, entry: Entry, pace: Pace, random: Callable[[], float], lease: Lease | None, /
        ) -> Machine: ...
        def result_of(self, lease: Lease, priority: int, /) -> dict[str, Any]: ...
        def interface_of(self, lease: Lease, /) -> Cidr: ...
        def facts_of(self, lease: Lease, /) -> dict[str, Any]: ...
        def prepare(self, netns: NetNS, ours: Link, /) -> None: ...
        def release_from_host(self, host: NetNS, entry: Entry, action: Send, /) -> None: ...


_FAMILIES: Mapping[int, Family] = {4: v4, 6: v6}
NAMES = {"ipv4": (4,), "ipv6": (6,), "both": (4, 6)}  # the values of `ipam.family`


def of(version: int) -> Family:
    """Return the DHCP of an IP version."""
    return _FAMILIES[version]
