"""Deleting an interface without waiting until the kernel has freed its memory.

The kernel removes an interface from its namespace within a millisecond or two, sends an event, and
releases the RTNL lock. Its acknowledgement comes an RCU grace period later (rcu_barrier in
netdev_run_todo of net/core/dev.c), which is nine tenths of the whole.

Deletions that come together are grouped if their callers name the same group: each moves its
interface into the group and asks for the deletion of the group (rtnl_group_dellink of
net/core/rtnetlink.c). The request that gets the RTNL lock first deletes all interfaces that joined
during the deletion before. Most grace periods are thereby waited for once, for any number of
interfaces.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
import socket
import struct
from sys import byteorder
from typing import TYPE_CHECKING

from cni_common.kernel.link import decode_identity
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.netns import NETLINK_ROUTE
from cni_common.kernel.rtnetlink import RTM_DELLINK, RTMGRP_LINK, Netlink

if TYPE_CHECKING:
    from cni_common.kernel.netlink import Channel
    from cni_common.kernel.netns import NetNS

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
# linux/filter.h: load a word, half or byte at an offset; skip unless equal; accept so many bytes.
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _IF_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
_SOCK_FILTER = struct.Struct("=HBBI")
_TYPE_AT, _FAMILY_AT, _INDEX_AT = 4, 16, 20  # struct nlmsghdr, struct ifinfomsg after it
_ALL = 0xFFFFFFFF


def delete_link(netns: NetNS, index: int, group: int = 0) -> bool:
    """Delete an interface and return once it is invisible; return False if there was none.

    A thread waits for the kernel's acknowledgement. The thread may outlive this call and `netns` by
    some ten milliseconds; the process waits for it at its end. `group` is the IFLA_GROUP of the
    interfaces that this process and others delete at this moment, 0 for none. Raises NetlinkError.
    """
    events = netns.channel(NETLINK_ROUTE, RTMGRP_LINK)
    if group:
        hear_only_deletion(events, index)
    waiting, outcome = _start_asking(netns, index, group)
    try:
        if _await_deletion(events, index, waiting):
            return True
    finally:
        os.close(waiting)
        netns.release(events)
        events.close()
    answer = outcome[0]
    if isinstance(answer, BaseException):
        raise answer
    if answer and group:  # no event: ours may have left the group again
        netns.netlink.delete_link(index)
    return answer


def _start_asking(netns: NetNS, index: int, group: int) -> tuple[int, list[bool | BaseException]]:
    """Send the request in a thread; return a descriptor that reads as ended after the answer."""
    channel = netns.channel(NETLINK_ROUTE)
    netns.release(channel)
    outcome: list[bool | BaseException] = []
    waiting, working = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        try:
            outcome.append(_ask(Netlink(channel), index, group))
        except BaseException as error:  # noqa: BLE001 - raised again by delete_link
            outcome.append(error)
        finally:
            channel.close()
            os.close(working)  # wakes the caller

    try:
        _thread.start_new_thread(work, ())
    except RuntimeError:  # no more threads are possible
        work()
    return waiting, outcome


def _ask(netlink: Netlink, index: int, group: int) -> bool:
    if not group:
        return netlink.delete_link(index)
    try:
        if netlink.delete_group(group, index):
            return True
    except NetlinkError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    # Perhaps another request has deleted it, and its event has come already. Otherwise it left the
    # group again, or the group has an undeletable interface, or the kernel has no groups.
    return netlink.delete_link(index)


def hear_only_deletion(channel: Channel, index: int) -> bool:
    """Filter a channel to one interface's events, so that no other event wakes it (socket(7)).

    Events that had arrived before stay. Return False if the kernel accepts no filter: then all
    events arrive.
    """
    from array import array

    program = array(
        "B",
        b"".join(
            (
                _SOCK_FILTER.pack(_LOAD_HALF, 0, 0, _TYPE_AT),
                _SOCK_FILTER.pack(_IF_EQUAL, 0, 5, _as_loaded(RTM_DELLINK, 2)),
                _SOCK_FILTER.pack(_LOAD_BYTE, 0, 0, _FAMILY_AT),
                _SOCK_FILTER.pack(_IF_EQUAL, 0, 3, socket.AF_UNSPEC),
                _SOCK_FILTER.pack(_LOAD_WORD, 0, 0, _INDEX_AT),
                _SOCK_FILTER.pack(_IF_EQUAL, 0, 1, _as_loaded(index, 4)),
                _SOCK_FILTER.pack(_RETURN, 0, 0, _ALL),
                _SOCK_FILTER.pack(_RETURN, 0, 0, 0),
            )
        ),
    )
    address, size = program.buffer_info()
    sock_fprog = struct.pack("@HP", size // _SOCK_FILTER.size, address)
    try:
        channel.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, sock_fprog)
    except OSError:
        return False
    return True


def _as_loaded(number: int, size: int) -> int:
    """Return a number of this machine's byte order as a filter, always big-endian, reads it."""
    return int.from_bytes(number.to_bytes(size, byteorder), "big")


def _await_deletion(events: Channel, index: int, end: int) -> bool:
    """Tell whether the event of the deletion comes before the answer's descriptor ends."""
    poll = select.poll()
    poll.register(events.sock, select.POLLIN)
    poll.register(end, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if _is_told(events, index):
            return True
        if end in ready:
            return False


def _is_told(events: Channel, index: int) -> bool:
    """Consume the events that have arrived; return whether the deletion is among them."""
    while arrived := events.read_events():
        if any(
            kind == RTM_DELLINK and decode_identity(data) == (socket.AF_UNSPEC, index)
            for kind, data in arrived
        ):
            return True
    return False
