"""VLANs of a bridge port, by rtnetlink (linux/if_bridge.h)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.link import IFLA_AF_SPEC, IFLA_EXT_MASK, decode_bridge_spec, encode_link
from cni_common.kernel.netlink import NLM_F_ACK, NLM_F_DUMP, Message, attribute, each_attribute, u32
from cni_common.kernel.rtnetlink import RTM_DELLINK, RTM_GETLINK, RTM_SETLINK

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni_common.kernel.rtnetlink import Netlink

_RTEXT_FILTER_BRVLAN = 2  # linux/rtnetlink.h
_IFLA_BRIDGE_FLAGS, _IFLA_BRIDGE_VLAN_INFO, _BRIDGE_FLAGS_MASTER = 0, 2, 1
_VLAN_INFO = struct.Struct("=HH")  # struct bridge_vlan_info: flags, vid
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 2, 4, 8, 16


@dataclass(frozen=True, slots=True)
class Vlan:
    """One VLAN of a bridge port."""

    vid: int  # 1 to 4094
    pvid: bool = False  # the VLAN of untagged frames that arrive (BRIDGE_VLAN_INFO_PVID)
    untagged: bool = False  # frames leave untagged (BRIDGE_VLAN_INFO_UNTAGGED)


def vlans_of(netlink: Netlink, index: int) -> list[Vlan]:
    """Return the VLANs of the bridge port `index`. Raises NetlinkError."""
    body = encode_link(u32(IFLA_EXT_MASK, _RTEXT_FILTER_BRVLAN), family=socket.AF_BRIDGE)
    message = Message("list bridge VLANs", RTM_GETLINK, NLM_F_DUMP, body, decode_bridge_spec)
    vlans = []
    for where, spec in netlink.channel.dump(message):
        for kind, payload in each_attribute(spec) if where == index else ():
            if kind == _IFLA_BRIDGE_VLAN_INFO:
                flags, vid = _VLAN_INFO.unpack(payload)
                vlans.append(Vlan(vid, bool(flags & _PVID), bool(flags & _UNTAGGED)))
    return vlans


def replace_vlans(netlink: Netlink, index: int, vlans: Sequence[Vlan], *, keep: bool) -> None:
    """Replace the VLANs of a port by `vlans`; with `keep` only add them. Raises NetlinkError."""
    if not keep:
        old = [{"vid": vlan.vid, "flags": 0} for vlan in vlans_of(netlink, index)]
        _send(netlink, f"delete VLANs of interface {index}", RTM_DELLINK, index, infos=old)
    infos = [
        {"vid": vlan.vid, "flags": _PVID * vlan.pvid | _UNTAGGED * vlan.untagged} for vlan in vlans
    ]
    what = f"add VLANs to interface {index}"
    _send(netlink, what, RTM_SETLINK, index, infos=_as_ranges(infos))


def _send(
    netlink: Netlink, what: str, kind: int, index: int, *, infos: list[dict[str, int]]
) -> None:
    if not infos:
        return
    spec = attribute(
        IFLA_AF_SPEC,
        attribute(_IFLA_BRIDGE_FLAGS, struct.pack("=H", _BRIDGE_FLAGS_MASTER)),
        *(
            attribute(_IFLA_BRIDGE_VLAN_INFO, _VLAN_INFO.pack(info["flags"], info["vid"]))
            for info in infos
        ),
    )
    body = encode_link(spec, family=socket.AF_BRIDGE, index=index)
    netlink.channel.exchange([Message(what, kind, NLM_F_ACK, body)])


def _as_ranges(infos: Iterable[dict[str, int]]) -> list[dict[str, int]]:
    """Return `infos` with runs of consecutive tagged VLANs as range begin and end."""
    ranges: list[dict[str, int]] = []
    for info in infos:
        last = ranges[-1] if ranges else None
        joins = last is not None and last["vid"] + 1 == info["vid"] and not info["flags"]
        if last is None or not joins or last["flags"] & (_PVID | _UNTAGGED):
            ranges.append(info)
        elif last["flags"] & _RANGE_END:
            last["vid"] = info["vid"]
        else:
            last["flags"] = _RANGE_BEGIN
            ranges.append({"vid": info["vid"], "flags": _RANGE_END})
    return ranges
