"""Traffic control by rtnetlink: qdiscs, classes and filters, packed by hand.

Attributes, structures and their numbers are those of linux/rtnetlink.h, linux/pkt_sched.h,
linux/pkt_cls.h and linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import errno
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import (
    HEADER_SIZE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_ECHO,
    NLM_F_EXCL,
    Message,
    NetlinkError,
    attribute,
    attributes,
    each_attribute,
    number_of,
    string,
    string_of,
    u32,
)

if TYPE_CHECKING:
    from cni_common.kernel.netlink import Channel
    from cni_common.spec.names import Subnet

ROOT, INGRESS = 0xFFFFFFFF, 0xFFFFFFF1  # TC_H_ROOT, TC_H_INGRESS: parents
FIRST, INGRESS_HANDLE = 0x10000, 0xFFFF0000  # the handles 1: and ffff:
NOWHERE = -1
TICK = 64  # nanoseconds of a tick of the packet scheduler (net/pkt_sched.h, PSCHED_SHIFT)
_NEWQDISC, _DELQDISC, _GETQDISC, _NEWTCLASS, _GETTCLASS = 36, 37, 38, 40, 42
_NEWTFILTER, _GETTFILTER = 44, 46
_KIND, _OPTIONS = 1, 2
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_U32_CLASSID, _U32_SEL, _U32_ACT = 1, 5, 7
_ACT_FIRST, _ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 1, 2, 2
_TERMINAL, _STOLEN, _EGRESS_REDIR, _ETHERNET = 1, 4, 1, 1
_TCMSG = struct.Struct("=BxxxiIII")  # family, interface, handle, parent, info
_RATESPEC = struct.Struct("=BBHhHI")
_TBF, _HTB_GLOBAL, _HTB_CLASS = struct.Struct("=III"), struct.Struct("=IIIII"), struct.Struct("=5I")
_SELECTOR, _SELECTOR_KEY = struct.Struct("!BBBxHHHHI"), struct.Struct("!IIII")
_MIRRED = struct.Struct("=IIiiiiI")
_U32 = 2**32 - 1
_HTB_VERSION, _RATE_TO_QUANTUM = 3, 10
_ALL, _IPV4, _IPV6 = 0x0003, 0x0800, 0x86DD  # linux/if_ether.h
# EtherType, priority (one per protocol), offsets of source and destination in the header.
_FAMILY = {4: (_IPV4, 16, 12, 16), 6: (_IPV6, 15, 8, 24)}
_ABSENT = (errno.ENOENT, errno.ENODEV, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Qdisc:
    """A queueing discipline as the kernel describes it; fields that its kind lacks are 0."""

    kind: str
    handle: int  # 0: the kernel's default one
    rate: int = 0  # bytes a second
    buffer: int = 0  # ticks
    limit: int = 0  # bytes
    default: int = 0  # minor number of htb's default class


@dataclass(frozen=True, slots=True)
class Class:
    """A class of htb."""

    handle: int
    rate: int  # bytes a second
    ceil: int
    buffer: int  # ticks


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter; of a kind other than u32 only its existence."""

    keys: bytes  # mask, value and offset of each compared word
    classid: int  # its class, 0: none
    redirect: int  # index of the redirect's target, 0: a gone interface, NOWHERE: no redirect


# --- requests ----------------------------------------------------------------------------------


def new_qdisc(what: str, index: int, parent: int, handle: int, kind: str, data: bytes) -> Message:  # noqa: PLR0917 - as tc names them
    """Return the request that makes a qdisc; EEXIST if there is one that is no default."""
    return _new(what, _NEWQDISC, _TCMSG.pack(0, index, handle, parent, 0), kind, data)


def new_class(what: str, index: int, handle: int, data: bytes) -> Message:
    """Return the request that makes a class of the htb 1:."""
    return _new(what, _NEWTCLASS, _TCMSG.pack(0, index, handle, FIRST, 0), "htb", data)


def subnet_filter(what: str, index: int, subnet: Subnet, classid: int, *, source: bool) -> Message:
    """Return the request for a filter from the qdisc 1: to a class, by source or destination."""
    data = u32(_U32_CLASSID, classid) + attribute(
        _U32_SEL, _selector(keys_of(subnet, source=source))
    )
    protocol, priority, _, _ = _FAMILY[subnet.version]
    return _new_filter(what, index, FIRST, protocol, priority, data)


def redirection(what: str, index: int, target: int) -> Message:
    """Return the request that redirects all ingress of the interface `index` to another."""
    parms = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIR, target)
    action = string(_ACT_KIND, "mirred") + attribute(_ACT_OPTIONS, attribute(_MIRRED_PARMS, parms))
    data = attribute(_U32_SEL, _selector(bytes(_SELECTOR_KEY.size)))
    data += attribute(_U32_ACT, attribute(_ACT_FIRST, action))
    return _new_filter(what, index, INGRESS_HANDLE, _ALL, 1, data)


def tbf(rate: int, buffer: int, limit: int, *, burst: int = 0) -> bytes:
    """Return the options of a token bucket; `burst` in bytes replaces `buffer`."""
    parms = _ratespec(rate) + bytes(_RATESPEC.size) + _TBF.pack(limit, buffer, 0)
    data = attribute(_TBF_PARMS, parms)
    if rate > _U32:
        data += _u64(_TBF_RATE64, rate)
    return data + (u32(_TBF_BURST, burst) if burst else b"")


def htb(default: int) -> bytes:
    """Return the options of an htb; unfiltered packets go to the class 1:`default`."""
    glob = _HTB_GLOBAL.pack(_HTB_VERSION, _RATE_TO_QUANTUM, default, 0, 0)
    return attribute(_HTB_INIT, glob)


def htb_class(rate: int, buffer: int, quantum: int) -> bytes:
    """Return the options of a class with a ceiling of `rate` bytes a second."""
    parms = _ratespec(rate) * 2 + _HTB_CLASS.pack(buffer, buffer, quantum, 0, 0)
    data = attribute(_HTB_PARMS, parms)
    if rate > _U32:
        data += _u64(_HTB_RATE64, rate) + _u64(_HTB_CEIL64, rate)
    return data


def fifo(limit: int) -> bytes:
    """Return the options of a bfifo (bytes) or pfifo (packets)."""
    return limit.to_bytes(4, sys.byteorder)


def keys_of(subnet: Subnet, *, source: bool) -> bytes:
    """Return the struct tc_u32_key of each word that matches packets from or to `subnet`."""
    _, _, source_at, destination_at = _FAMILY[subnet.version]
    offset = source_at if source else destination_at
    address, mask = subnet.network_address.packed, subnet.netmask.packed
    keys = b"".join(
        mask[i : i + 4] + address[i : i + 4] + struct.pack("=ii", offset + i, 0)
        for i in range(0, len(mask), 4)
        if any(mask[i : i + 4])
    )
    return keys or bytes(_SELECTOR_KEY.size)  # matches any packet


# --- queries -----------------------------------------------------------------------------------


def root(channel: Channel, index: int) -> Qdisc | None:
    """Return the root qdisc of an interface."""
    return _qdisc(channel, index, ROOT, "look up the root qdisc")


def ingress(channel: Channel, index: int) -> Qdisc | None:
    """Return the ingress qdisc of an interface, None if there is none."""
    return _qdisc(channel, index, INGRESS, "look up the ingress qdisc")


def classes(channel: Channel, index: int) -> list[Class]:
    """Return the classes of the interface's root qdisc, which is an htb."""
    body = _TCMSG.pack(0, index, 0, 0, 0)
    what = f"list classes of interface {index}"
    return channel.dump(Message(what, _GETTCLASS, NLM_F_DUMP, body, _decode_class))


def filters(channel: Channel, index: int, parent: int) -> list[Filter]:
    """Return the filters of a qdisc."""
    body = _TCMSG.pack(0, index, 0, parent, 0)
    what = f"list filters of interface {index}"
    found: list[list[Filter]] = channel.dump(
        Message(what, _GETTFILTER, NLM_F_DUMP, body, _decode_filter)
    )
    return [one for part in found for one in part]


def delete_qdisc(channel: Channel, index: int, parent: int, handle: int) -> None:
    """Delete a qdisc with its classes and filters; do nothing if it is gone."""
    body = _TCMSG.pack(0, index, handle, parent, 0)
    what = f"delete {'ingress' if parent == INGRESS else 'root'} qdisc of interface {index}"
    try:
        channel.exchange([Message(what, _DELQDISC, NLM_F_ACK, body)])
    except NetlinkError as error:
        if error.errno not in _ABSENT:
            raise


def _qdisc(channel: Channel, index: int, parent: int, what: str) -> Qdisc | None:
    body = _TCMSG.pack(0, index, 0, parent, 0)
    flags = NLM_F_ACK | NLM_F_ECHO  # ECHO: else only listeners get the qdisc
    message = Message(f"{what} of interface {index}", _GETQDISC, flags, body, _decode_qdisc)
    try:
        found: list[Qdisc] = channel.exchange([message])[0]
    except NetlinkError as error:
        if error.errno in _ABSENT:
            return None
        raise
    return found[0] if found else None


def _decode_qdisc(data: bytes) -> Qdisc:
    handle, kind, options = _decode(data)
    own = attributes(options) if kind in ("tbf", "htb") else {}
    if kind == "tbf" and _TBF_PARMS in own:
        limit, buffer, _ = _TBF.unpack_from(own[_TBF_PARMS], 2 * _RATESPEC.size)
        rate = _rate(own[_TBF_PARMS], 0, own.get(_TBF_RATE64))
        return Qdisc(kind, handle, rate, buffer, limit)
    if kind == "htb" and _HTB_INIT in own:
        return Qdisc(kind, handle, default=_HTB_GLOBAL.unpack_from(own[_HTB_INIT])[2])
    return Qdisc(kind, handle)


def _decode_class(data: bytes) -> Class:
    handle, _, options = _decode(data)
    own = attributes(options)
    parms = own.get(_HTB_PARMS, bytes(2 * _RATESPEC.size + _HTB_CLASS.size))
    return Class(
        handle,
        _rate(parms, 0, own.get(_HTB_RATE64)),
        _rate(parms, _RATESPEC.size, own.get(_HTB_CEIL64)),
        _HTB_CLASS.unpack_from(parms, 2 * _RATESPEC.size)[0],
    )


def _decode_filter(data: bytes) -> list[Filter]:
    handle, kind, options = _decode(data)
    own = attributes(options)
    if kind != "u32":
        return [Filter(b"", 0, NOWHERE)] if handle else []
    if _U32_SEL not in own:  # a hash table of filters, or their root
        return []
    redirect = NOWHERE
    for _, action in each_attribute(own.get(_U32_ACT, b"")):
        parts = attributes(action)
        parms = attributes(parts.get(_ACT_OPTIONS, b"")).get(_MIRRED_PARMS)
        if string_of(parts.get(_ACT_KIND)) == "mirred" and parms:
            redirect = _MIRRED.unpack_from(parms)[6]
    sel = own[_U32_SEL]
    count = _SELECTOR.unpack_from(sel)[2]
    keys = sel[_SELECTOR.size : _SELECTOR.size + count * _SELECTOR_KEY.size]
    return [Filter(keys, number_of(own.get(_U32_CLASSID)), redirect)]


def _decode(data: bytes) -> tuple[int, str, bytes]:
    """Return handle, kind and options in a message."""
    _, _, handle, _, _ = _TCMSG.unpack_from(data, HEADER_SIZE)
    attrs = attributes(data, HEADER_SIZE + _TCMSG.size)
    return handle, string_of(attrs.get(_KIND)), attrs.get(_OPTIONS, b"")


# --- packing -----------------------------------------------------------------------------------


def _new(what: str, kind: int, body: bytes, name: str, data: bytes) -> Message:  # noqa: PLR0917 - the parts of a message
    attrs = string(_KIND, name) + (attribute(_OPTIONS, data) if data else b"")
    return Message(what, kind, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, body + attrs)


def _new_filter(  # noqa: PLR0917 - as tc names them
    what: str, index: int, parent: int, protocol: int, priority: int, data: bytes
) -> Message:
    info = priority << 16 | int.from_bytes(protocol.to_bytes(2, "big"), sys.byteorder)
    return _new(what, _NEWTFILTER, _TCMSG.pack(0, index, 0, parent, info), "u32", data)


def _selector(keys: bytes) -> bytes:
    return _SELECTOR.pack(_TERMINAL, 0, len(keys) // _SELECTOR_KEY.size, 0, 0, 0, 0, 0) + keys


def _ratespec(rate: int) -> bytes:
    return _RATESPEC.pack(0, _ETHERNET, 0, 0, 0, min(rate, _U32))


def _rate(parms: bytes, offset: int, rate64: bytes | None) -> int:
    small: int = _RATESPEC.unpack_from(parms, offset)[5]
    return number_of(rate64) or small


def _u64(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(8, sys.byteorder))
