"""macvlan in rtnetlink: creation and settings (linux/if_link.h, drivers/net/macvlan.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel.netlink import number_of, u32
from cni_common.node import master
from plugins.macvlan.conf import BRIDGE, PASSTHRU

if TYPE_CHECKING:
    from cni_common.kernel.link import Link, VethEnd
    from cni_common.kernel.netns import NetNS
    from plugins.macvlan.conf import Conf

KIND = "macvlan"
_IFLA_MODE, _IFLA_BC_QUEUE_LEN = 1, 7  # IFLA_MACVLAN_*
_NUMBERS = {"private": 1, "vepa": 2, BRIDGE: 4, PASSTHRU: 8}  # MACVLAN_MODE_*
_NAMES = {number: name for name, number in _NUMBERS.items()}


def create(below: NetNS, parent: Link, end: VethEnd, conf: Conf) -> None:
    """Create `end` on the master `parent`, which is in `below`. Raises CNIError, NetlinkError."""
    data = [u32(_IFLA_MODE, _NUMBERS[conf.mode])]
    if conf.broadcast_queue:
        data.append(u32(_IFLA_BC_QUEUE_LEN, conf.broadcast_queue))
    master.add_device(
        below,
        parent,
        end,
        KIND,
        *data,
        called=f"a macvlan in mode {conf.mode}",
        obstacles="it may be a port of a bridge or bond, carry ipvlan or a macvlan in mode"
        " passthru, which is alone, or be no Ethernet interface",
    )


def settings(netns: NetNS, index: int) -> tuple[str, int]:
    """Return mode and broadcast queue, in packets, of an interface; 0: not told by the kernel."""
    found = netns.netlink.info(index)
    mode = number_of(found.get(_IFLA_MODE))
    return _NAMES.get(mode, str(mode)), number_of(found.get(_IFLA_BC_QUEUE_LEN))
