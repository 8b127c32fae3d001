"""macvlan in rtnetlink: creation and settings (linux/if_link.h, drivers/net/macvlan.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import NetlinkError, number_of, u32
from cni_common.spec.errors import CNIError, Code
from plugins.macvlan.conf import BRIDGE, PASSTHRU

if TYPE_CHECKING:
    from cni_common.kernel.link import Link, VethEnd
    from cni_common.kernel.netns import NetNS
    from plugins.macvlan.conf import Conf

KIND = "macvlan"
_IFLA_MODE, _IFLA_BC_QUEUE_LEN = 1, 7  # IFLA_MACVLAN_*
_NUMBERS = {"private": 1, "vepa": 2, BRIDGE: 4, PASSTHRU: 8}  # MACVLAN_MODE_*
_NAMES = {number: name for name, number in _NUMBERS.items()}


def create(below: NetNS, master: Link, end: VethEnd, conf: Conf) -> None:
    """Create `end` on the `master`, which is in `below`. Raises CNIError, NetlinkError."""
    data = [u32(_IFLA_MODE, _NUMBERS[conf.mode])]
    if conf.broadcast_queue:
        data.append(u32(_IFLA_BC_QUEUE_LEN, conf.broadcast_queue))
    try:
        below.netlink.add_device(end, KIND, *data, parent=master.index)
    except NetlinkError as error:
        if error.errno not in (errno.EBUSY, errno.EINVAL):
            raise
        raise CNIError(
            Code.INTERNAL,
            f"the kernel refuses a macvlan in mode {conf.mode} on master '{master.name}'"
            f" ({error.strerror}): it may be a port of a bridge or bond, carry ipvlan or a macvlan"
            " in mode passthru, which is alone, or be no Ethernet interface",
        ) from None


def settings(netns: NetNS, index: int) -> tuple[str, int]:
    """Return mode and broadcast queue, in packets, of an interface; 0: not told by the kernel."""
    found = netns.netlink.info(index)
    mode = number_of(found.get(_IFLA_MODE))
    return _NAMES.get(mode, str(mode)), number_of(found.get(_IFLA_BC_QUEUE_LEN))
