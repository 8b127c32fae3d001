"""ipvlan in rtnetlink: creation and mode (linux/if_link.h, drivers/net/ipvlan)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel.netlink import number_of, u16
from cni_common.node import master
from plugins.ipvlan.conf import MODES

if TYPE_CHECKING:
    from cni_common.kernel.link import Link, VethEnd
    from cni_common.kernel.netns import NetNS

KIND = "ipvlan"
_IFLA_MODE = 1  # IFLA_IPVLAN_MODE; the values are IPVLAN_MODE_L2, L3, L3S


def create(below: NetNS, parent: Link, end: VethEnd, mode: str) -> None:
    """Create `end` on the master `parent`, which is in `below`. Raises CNIError, NetlinkError."""
    master.add_device(
        below,
        parent,
        end,
        KIND,
        u16(_IFLA_MODE, MODES.index(mode)),
        called=f"an ipvlan in mode {mode}",
        obstacles="it may be a port of a bridge or bond, carry macvlan, or be no Ethernet"
        " interface; or the kernel lacks the mode",
    )


def mode_of(netns: NetNS, index: int) -> str:
    """Return the mode of an interface, a number if it is none of MODES."""
    number = number_of(netns.netlink.info(index).get(_IFLA_MODE))
    return MODES[number] if number < len(MODES) else str(number)
