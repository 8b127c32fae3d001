"""Deleting an interface without waiting until the kernel has freed its memory.

The kernel removes an interface from its namespace within a millisecond or two, sends an event, and
releases the RTNL lock. Its acknowledgement comes an RCU grace period later (rcu_barrier in
netdev_run_todo of net/core/dev.c), which is nine tenths of the whole.

Deletions that come together are grouped if their callers name the same group: each moves its
interface into the group and asks for the deletion of the group (rtnl_group_dellink of
net/core/rtnetlink.c). The request that gets the RTNL lock first deletes all interfaces that joined
during the deletion before. Most grace periods are thereby waited for once, for any number of
interfaces.

A thread or a process waits for the acknowledgement. A process that is about to end has no use for a
thread: the kernel ends it once all its threads have returned.
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
from cni_common.kernel.netns import FIRST_PID_NAMESPACE, NETLINK_ROUTE
from cni_common.kernel.rtnetlink import RTM_DELLINK, RTMGRP_LINK, Netlink, link_deletion

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_common.kernel.netlink import Channel
    from cni_common.kernel.netns import NetNS

    # A descriptor that reads as ended after the answer, and what returns or raises the answer then.
    Asking = tuple[int, Callable[[], bool]]

SENDER = "netlink-send"  # launcher/netlink_send.c, beside the frozen program
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
# linux/filter.h: load a word, half or byte at an offset; skip unless equal; accept so many bytes.
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _IF_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
_SOCK_FILTER = struct.Struct("=HBBI")
_TYPE_AT, _FAMILY_AT, _INDEX_AT = 4, 16, 20  # struct nlmsghdr, struct ifinfomsg after it
_ALL = 0xFFFFFFFF
# Programs that take care of orphans as process 1, by /proc/PID/comm.
_REAPERS = {b"systemd", b"init", b"bash", b"tini", b"docker-init", b"dumb-init", b"catatonit"}


def delete_link(netns: NetNS, index: int, group: int = 0, *, sender: str = "") -> bool:
    """Delete an interface and return once it is invisible; return False if there was none.

    A thread waits for the kernel's acknowledgement. The thread may outlive this call and `netns` by
    some ten milliseconds; the process waits for it at its end. So where this process ends soon, the
    program `sender` (launcher/netlink_send.c) waits instead, if process 1 takes care of it. `group`
    is the IFLA_GROUP of the interfaces that this process and others delete at this moment, 0 for
    none. Raises NetlinkError.
    """
    events = netns.channel(NETLINK_ROUTE, RTMGRP_LINK)
    if group or sender:  # others delete theirs at this moment, and tell all who listen
        hear_only_deletion(events, index)
    waiting, answer = _start_asking(netns, index, group, sender)
    try:
        if _await_deletion(events, index, waiting):
            return True
        is_deleted = answer()
    finally:
        os.close(waiting)
        netns.release(events)
        events.close()
    if is_deleted and group:  # no event: ours may have left the group again
        netns.netlink.delete_link(index)
    return is_deleted


def _start_asking(netns: NetNS, index: int, group: int, sender: str) -> Asking:
    channel = netns.channel(NETLINK_ROUTE)
    netns.release(channel)
    if sender and orphans_are_reaped():
        try:
            return _ask_by_program(netns, channel, index, sender)
        except OSError:  # it is gone, or no more processes are possible
            pass
    return _ask_by_thread(channel, index, group)


def _ask_by_thread(channel: Channel, index: int, group: int) -> Asking:
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

    def answer() -> bool:
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    try:
        _thread.start_new_thread(work, ())
    except RuntimeError:  # no more threads are possible
        work()
    return waiting, answer


def orphans_are_reaped() -> bool:
    """Tell whether process 1 surely takes care of a process whose parent has ended.

    That of the machine does. In a container it may be a program that never waits for a child which
    it has not started: each would stay in the table of processes.
    """
    try:
        if os.stat("/proc/self/ns/pid").st_ino == FIRST_PID_NAMESPACE:
            return True
        with open("/proc/1/comm", "rb") as file:
            is_reaper = file.read().strip() in _REAPERS
        return is_reaper and os.readlink("/proc/self") == str(os.getpid())  # /proc is of this one
    except OSError:
        return False


def _ask_by_program(netns: NetNS, channel: Channel, index: int, sender: str) -> Asking:
    """Have a program ask, which holds no other file of this process. Raises OSError without it.

    The program writes a byte when the kernel has deleted the interface. Otherwise this process asks
    by itself, and gets the reason.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    waiting = -1
    with theirs:
        try:
            waiting = os.dup(ours.fileno())  # all that can fail comes before the program
            ours.send(link_deletion(index).encode(1))
            _spawn(sender, theirs.fileno(), channel.sock.fileno())
        except OSError:
            ours.close()
            if waiting >= 0:
                os.close(waiting)
            raise
    channel.close()
    netns.leave_to(ours)

    def answer() -> bool:
        try:
            is_deleted = bool(os.read(waiting, 1))
        except ConnectionResetError:  # it ended before it had read the request
            is_deleted = False
        return is_deleted or netns.netlink.delete_link(index)

    return waiting, answer


def _spawn(sender: str, caller: int, kernel: int) -> None:
    """Start the program with its two sockets. Raises OSError.

    posix_spawn(3) shares memory with the program until that runs, where fork(2) copies all pages
    that either process writes to.
    """
    streams = [(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in enumerate((caller, kernel, caller))]
    os.posix_spawn(sender, [sender], {}, file_actions=streams)


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
