"""VLAN interfaces in rtnetlink: creation and id (linux/if_link.h, net/8021q/vlan_netlink.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import NetlinkError, number_of, u16
from cni_common.node import master
from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from cni_common.kernel.link import Link, VethEnd
    from cni_common.kernel.netns import NetNS

KIND, MODULE = "vlan", "8021q"
_IFLA_ID = 1  # IFLA_VLAN_ID


def create(below: NetNS, parent: Link, end: VethEnd, vlan: int) -> None:
    """Create `end` on the master `parent`, which is in `below`.

    Raises CNIError, NetlinkError; EEXIST also if the master has an interface for this VLAN, in
    any namespace.
    """
    try:
        master.add_device(
            below,
            parent,
            end,
            KIND,
            u16(_IFLA_ID, vlan),
            called=f"an interface for VLAN {vlan}",
            obstacles=f"\"mtu\" may be too large for tagged frames on '{parent.name}'",
        )
    except NetlinkError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"the kernel makes no interface for a VLAN on '{parent.name}': load the module"
            f" '{MODULE}', or choose a master that carries VLANs, which a loopback does not",
        ) from None


def id_of(netns: NetNS, index: int) -> int:
    """Return the VLAN of an interface."""
    return number_of(netns.netlink.info(index).get(_IFLA_ID))


def name_of(netns: NetNS, parent: Link, vlan: int) -> str:
    """Return the name of the interface for this VLAN of `parent`, "" if it is not in `netns`."""
    for link in netns.netlink.links():
        at_parent = link.kind == KIND and (link.peer, link.peer_nsid) == (parent.index, None)
        if at_parent and id_of(netns, link.index) == vlan:
            return link.name
    return ""
