"""VLANs of a bridge port, as rtnetlink has them (linux/if_bridge.h)."""

import socket
from dataclasses import dataclass

from cni_common.link import LinkMessage
from cni_common.netlink import NLM_F_ACK, NLM_F_DUMP, Message
from cni_common.rtnetlink import RTM_DELLINK, RTM_GETLINK, RTM_SETLINK, body_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from cni_common.rtnetlink import Netlink

_RTEXT_FILTER_BRVLAN = 2  # linux/rtnetlink.h
_BRIDGE_FLAGS_MASTER = 1
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 2, 4, 8, 16


@dataclass(frozen=True, slots=True)
class Vlan:
    """One VLAN of a bridge port."""

    vid: int  # 1 to 4094
    pvid: bool = False  # untagged frames that arrive belong to it
    untagged: bool = False  # its frames leave without a tag


def vlans_of(netlink: "Netlink", index: int) -> list[Vlan]:
    """Return the VLANs of the bridge port `index`."""
    attrs = [("IFLA_EXT_MASK", _RTEXT_FILTER_BRVLAN)]
    body = body_of(LinkMessage, family=socket.AF_BRIDGE, attrs=attrs)
    message = Message("list bridge VLANs", RTM_GETLINK, NLM_F_DUMP, body)
    vlans = []
    for answer in netlink.channel.dump(message):
        spec = answer.get_attr("IFLA_AF_SPEC") if answer["index"] == index else None
        for info in spec.get_attrs("IFLA_BRIDGE_VLAN_INFO") if spec else ():
            flags = info["flags"]
            vlans.append(Vlan(info["vid"], bool(flags & _PVID), bool(flags & _UNTAGGED)))
    return vlans


def replace_vlans(netlink: "Netlink", index: int, vlans: "Sequence[Vlan]", *, keep: bool) -> None:
    """Give a port `vlans`; those it had go, unless `keep`. Neighbouring ones travel as ranges."""
    if not keep:
        old = [{"vid": vlan.vid, "flags": 0} for vlan in vlans_of(netlink, index)]
        _send(netlink, f"delete VLANs of interface {index}", RTM_DELLINK, index, infos=old)
    infos = [
        {"vid": vlan.vid, "flags": _PVID * vlan.pvid | _UNTAGGED * vlan.untagged} for vlan in vlans
    ]
    what = f"add VLANs to interface {index}"
    _send(netlink, what, RTM_SETLINK, index, infos=_as_ranges(infos))


def _send(
    netlink: "Netlink", what: str, kind: int, index: int, *, infos: "list[dict[str, int]]"
) -> None:
    if not infos:
        return
    spec: list[tuple[str, Any]] = [("IFLA_BRIDGE_FLAGS", _BRIDGE_FLAGS_MASTER)]
    spec += [("IFLA_BRIDGE_VLAN_INFO", info) for info in infos]
    attrs = [("IFLA_AF_SPEC", {"attrs": spec})]
    body = body_of(LinkMessage, family=socket.AF_BRIDGE, index=index, attrs=attrs)
    netlink.channel.exchange([Message(what, kind, NLM_F_ACK, body)])


def _as_ranges(infos: "Iterable[dict[str, int]]") -> "list[dict[str, int]]":
    """Return `infos` with runs of consecutive plain VLANs written as range begin and end."""
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
