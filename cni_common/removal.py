"""Deleting an interface without waiting until the kernel has freed its memory.

The kernel takes an interface out of its namespace within a millisecond or two, says so by an event,
and lets others have the RTNL lock. Its answer comes after a grace period more (rcu_barrier in
netdev_run_todo of net/core/dev.c), which is nine tenths of the whole.
"""

import _thread
import os
import select
from socket import AF_UNSPEC

from cni_common.link import decode_identity
from cni_common.netns import NETLINK_ROUTE
from cni_common.rtnetlink import RTM_DELLINK, RTMGRP_LINK, Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_common.netlink import Channel
    from cni_common.netns import NetNS


def delete_link(netns: "NetNS", index: int) -> bool:
    """Delete an interface and return once nobody can see it any more; False when there was none.

    The kernel's answer is awaited by a thread, which may outlive this call and `netns` by some ten
    milliseconds, and which the process waits for when it ends. Raises NetlinkError.
    """
    events = netns.channel(NETLINK_ROUTE, RTMGRP_LINK)
    channel = netns.channel(NETLINK_ROUTE)
    netns.release(channel)
    outcome: list[bool | BaseException] = []
    waiting, working = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        try:
            outcome.append(Netlink(channel).delete_link(index))
        except BaseException as error:  # noqa: BLE001 - raised again below, by the caller
            outcome.append(error)
        finally:
            channel.close()
            os.close(working)  # which wakes the caller

    try:
        try:
            _thread.start_new_thread(work, ())
        except RuntimeError:  # there can be no more threads
            work()
        if _await_deletion(events, index, waiting):
            return True
    finally:
        os.close(waiting)
        netns.release(events)
        events.close()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _await_deletion(events: "Channel", index: int, end: int) -> bool:
    """Tell whether the kernel says that the interface is gone before the other end is closed."""
    poll = select.poll()
    poll.register(events.sock, select.POLLIN)
    poll.register(end, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if events.sock.fileno() in ready and any(
            kind == RTM_DELLINK and decode_identity(data) == (AF_UNSPEC, index)
            for kind, data in events.read_events()
        ):
            return True
        if end in ready:
            return False
