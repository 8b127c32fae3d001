"""The upkeep of one lease: the machine of states, its messages, its file, the interface."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from cni_common.kernel.netns import FIRST_PID_NAMESPACE, NETLINK_ROUTE, pid_namespace
from cni_common.kernel.rtnetlink import RTMGRP_IPV6_IFADDR
from cni_common.node import namespaces, veth
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.result import Result
from plugins.dhcp.daemon import family, link
from plugins.dhcp.daemon.loop import now
from plugins.dhcp.daemon.machine import Bound, GaveUp, Lost, Send
from plugins.dhcp.daemon.options import MalformedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from cni_common.kernel.netns import NetNS
    from plugins.dhcp.daemon.loop import Loop, Timer
    from plugins.dhcp.daemon.machine import Action, Lease, Pace
    from plugins.dhcp.daemon.store import Entry, Store

    Waiter = Callable[["dict[str, Any] | CNIError"], object]

_LISTEN_SECONDS = 10.0  # for an answer; longer, the sockets would keep a dead container's namespace
_LINK_SECONDS, _LINK_PAUSE = 5.0, 0.02  # until an interface that was set up can be used
_EVENTS = 64  # that are read at once: a container can make any number of them
_SECOND_TRY_SECONDS = 60.0
_GONE_TIMES = 2  # at which a namespace must be gone: a look into /proc may miss one


class GoneError(Exception):
    """The interface is not to be found; `is_all`: nor is the container's namespace."""

    def __init__(self, text: str, *, is_all: bool) -> None:
        super().__init__(text)
        self.is_all = is_all


@dataclass(frozen=True, slots=True)
class Node:
    """Objects and settings that all leases of the daemon share."""

    loop: Loop
    store: Store
    log: Callable[[str], object]
    host: NetNS
    prefix: str  # before the paths of namespaces: where the daemon sees the host's root
    boot_id: str
    pace: Pace
    broadcast: bool  # have servers broadcast their answers


class Upkeep:
    """Keeps one lease from its first message to its release."""

    def __init__(self, node: Node, entry: Entry, on_end: Callable[[Upkeep], object]) -> None:
        """`on_end` is called when there is nothing more to keep."""
        self.entry = entry
        self.reason = ""  # why there is no address
        self._node = node
        self._on_end = on_end
        self._waiters: list[Waiter] = []
        self._talk: link.Talk | None = None
        self._timer: Timer | None = None
        self._listening: Timer | None = None
        self._gone = 0  # times in a row at which the container's namespace was gone
        self._waiting: Timer | None = None  # for an address of the interface, at most until then
        self._on_change: Callable[[], object] | None = None  # called when one has changed
        self._family = family.of(entry.key.family)
        self._machine = self._family.machine_of(entry, node.pace, random, _valid(entry))

    @property
    def holds(self) -> bool:
        """Tell whether there is a lease whose address may be used."""
        return self._machine.holds

    @property
    def told(self) -> dict[str, Any]:
        """The lease in words, for people and plugins; without one, the reason."""
        lease = self._machine.lease
        if not lease or not self.holds:
            return {"reason": self.reason or "it is being asked for"}
        left = "forever" if lease.expire == inf else f"for {max(lease.expire - now(), 0):.0f} s"
        facts = "; ".join(f"{key} {value}" for key, value in self._family.facts_of(lease).items())
        return {
            "address": str(self._family.interface_of(lease)),
            "server": str(lease.server),
            "state": self._machine.state,
            "told": f"{self._machine.state}, {left}{'; ' if facts else ''}{facts}",
        }

    # --- ADD ---

    def acquire(self, netns: NetNS, seconds: float, waiter: Waiter) -> None:
        """Look for a lease over the interface in `netns`, and tell `waiter` how it went."""
        self._waiters.append(waiter)
        until = now() + seconds
        try:
            self._talk = self._opened(netns)
        except (CNIError, GoneError, OSError) as error:
            self._fail(_internal(error))
            return
        self._listen(until)
        self._await_link(until, now() + _LINK_SECONDS)

    def join(self, waiter: Waiter) -> None:
        """Tell `waiter`, too: the same ADD once more."""
        if self.holds and self._machine.lease:
            waiter(self._granted(self._machine.lease))
        else:
            self._waiters.append(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Do not tell `waiter`; without any, no caller would know of a lease that comes."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            if not self._waiters:
                self._node.log(f"{self.entry.key}: the ADD was given up")
                self._fail(CNIError(Code.TRY_AGAIN_LATER, "the ADD was given up"))

    def _await_link(self, until: float, link_until: float) -> None:
        """Begin once a message would reach the network: a lost one costs seconds."""
        if self._talk is None:
            return
        again = partial(self._await_link, until, link_until)
        try:
            if now() < link_until and not self._talk.is_up(self._node.host):
                self._timer = self._node.loop.call_after(_LINK_PAUSE, again)
                return
            if now() < link_until and not self._talk.is_ready():
                self._await_change(self._talk, again, link_until)
                return
        except OSError as error:
            self._fail(_internal(error))
            return
        self._on_change = None
        self._perform(self._machine.start(now(), until - now()))

    def _await_change(self, talk: link.Talk, again: Callable[[], object], until: float) -> None:
        """Have `again` called when addresses of the namespace change, and at `until`."""
        if talk.changes is None:
            talk.changes = talk.netns.channel(NETLINK_ROUTE, RTMGRP_IPV6_IFADDR)
            self._node.loop.watch(talk.changes.sock, self._changed)
            until = now()  # they may have changed before
        self._on_change = again
        self._end_waiting()
        self._waiting = self._node.loop.call_at(until, again)

    def _changed(self) -> None:
        if self._talk is None or self._talk.changes is None:
            return
        for _ in range(_EVENTS):
            if not self._talk.changes.read_events():
                break
        if self._on_change:
            self._on_change()

    def _end_waiting(self) -> None:
        if self._waiting:
            self._waiting.cancel()
            self._waiting = None

    # --- after a restart ---

    def resume(self) -> None:
        """Go on with a lease that was kept by an earlier process."""
        lease, entry = self._machine.lease, self.entry
        if lease is not None:
            self._schedule()
            if self._family.VERIFIES_AT_START:
                self._node.loop.call_after(random(), self.verify)
        elif entry.lease and not entry.is_lost:  # it ended while there was no daemon
            reason = "the lease has expired while there was no daemon"
            self._perform([Lost(entry.lease, reason), *self._machine.resume(now(), entry.lease)])
        elif entry.lease:
            self._perform(self._machine.resume(now(), entry.lease))

    def verify(self) -> None:
        """Ask whether the address is still right: the link was away."""
        self._perform(self._machine.verify(now()))

    # --- DEL ---

    def release(self) -> None:
        """Give the lease back, and end."""
        if self._machine.lease:
            self._give_back(self._machine.lease)
        self._end()

    def _give_back(self, lease: Lease) -> None:
        """Release over the container's interface, without the address, or else from the host."""
        try:
            self._talk = talk = self._talk or self._opened()
        except (CNIError, GoneError, OSError):
            give_back_from_host(self._node, self.entry, lease)
            self._machine.stop()
            return
        log, key, is_duplicate = self._node.log, self.entry.key, self._is_duplicate(talk, lease)
        self._remove_address(talk, lease)
        for action in self._machine.decline() if is_duplicate else self._machine.stop():
            assert isinstance(action, Send)
            try:
                talk.give_back(action, self.entry.server_mac)
            except OSError as error:
                log(f"{key}: cannot release {lease.address}: {error.strerror}")
            else:
                what = "declined, another machine has" if is_duplicate else "released"
                log(f"{key}: {what} {lease.address}")

    def _is_duplicate(self, talk: link.Talk, lease: Lease) -> bool | None:
        """Tell whether another machine of the link has the address; None: it is being asked."""
        try:
            return talk.is_duplicate(self._family.interface_of(lease))
        except (MalformedError, OSError):
            return False

    def _remove_address(self, talk: link.Talk, lease: Lease) -> None:
        try:
            talk.remove_address(self._family.interface_of(lease))
        except MalformedError:
            pass  # without a subnet mask no caller got it
        except OSError as error:
            self._node.log(f"{self.entry.key}: cannot remove {lease.address}: {error.strerror}")

    def _end(self) -> None:
        self._close_talk()
        self._cancel()
        self._on_end(self)
        try:
            self._node.store.remove(self.entry.key)
        except OSError as error:
            self._node.log(f"{self.entry.key}: cannot remove its lease: {error.strerror}")
        self._tell(CNIError(Code.TRY_AGAIN_LATER, "the attachment was deleted meanwhile"))

    # --- what the machine wants ---

    def _tick(self) -> None:
        # Should something unforeseen happen below, the lease is not forgotten.
        self._timer = self._node.loop.call_after(_SECOND_TRY_SECONDS, self._tick)
        self._perform(self._machine.tick(now()))

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._send(action)
                case Bound():
                    self._bound(action)
                case Lost():
                    self._lost(action)
                case GaveUp():
                    self._fail(CNIError(Code.TRY_AGAIN_LATER, action.reason))
                    return
        self._schedule()

    def _schedule(self) -> None:
        self._cancel()
        if self._machine.deadline < inf:
            self._timer = self._node.loop.call_at(self._machine.deadline, self._tick)

    def _cancel(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _send(self, action: Send) -> None:
        try:
            if self._talk is None:
                self._talk = self._opened()
                self._gone = 0
            self._listen()
            self._talk.send(action)
        except GoneError as error:
            self._unreachable(error)
        except OSError as error:  # as if it were lost: there will be another try
            self._machine.problem = f"cannot send {action.message.name}: {error.strerror or error}"
            self._node.log(f"{self.entry.key}: {self._machine.problem}")

    def _receive(self) -> None:
        if self._talk is None:
            return
        try:
            found = list(self._talk.receive())
        except OSError as error:
            self._node.log(f"{self.entry.key}: cannot receive: {error.strerror or error}")
            self._close_talk()
            return
        for data, sender in found:
            due = self._machine.deadline
            try:
                actions = self._machine.hear(data, sender, now())
            except MalformedError:
                continue
            if actions or self._machine.deadline != due:
                self._perform(actions)

    def _bound(self, action: Bound) -> None:
        lease, key = action.lease, self.entry.key
        was_lost = self.entry.is_lost
        try:
            granted = self._granted(lease)
        except MalformedError as error:
            self._refuse(str(error))
            return
        mac = self._machine.neighbour or self.entry.server_mac
        self.entry = replace(self.entry, lease=lease, is_lost=False, server_mac=mac)
        self._save()
        if action.is_new:
            self._node.log(f"{key}: bound to {lease.address} by DHCP server {lease.server}")
        if was_lost:
            self._restore(lease)
        elif not self._on_change:
            self._close_talk()
        self.reason = ""
        self._tell(granted)

    def _refuse(self, reason: str) -> None:
        """End with a lease that is of no use."""
        self._node.log(f"{self.entry.key}: {reason}")
        if self._waiters:
            self._fail(CNIError(Code.INTERNAL, f"{reason}; correct that server"))

    def _lost(self, action: Lost) -> None:
        lease = action.lease
        self.reason = action.reason
        self.entry = replace(self.entry, lease=lease, is_lost=True)
        self._save()
        try:
            if self._talk is None:
                self._talk = self._opened()
                self._listen()
            self._remove_address(self._talk, lease)
            self._node.log(f"{self.entry.key}: {lease.address} is removed: {action.reason}")
        except GoneError as error:
            self._node.log(f"{self.entry.key}: no more {lease.address}: {action.reason}")
            self._unreachable(error)
        except OSError as error:
            self._node.log(f"{self.entry.key}: cannot remove {lease.address}: {error.strerror}")

    def _restore(self, lease: Lease) -> None:
        """Put address and routes on the interface again: its lease had ended."""
        result = Result.parse(self._family.result_of(lease, self.entry.priority))
        addresses = [ip.address for ip in result.ips]
        routes = veth.routes_of(result, result.ips)
        try:
            if self._talk:
                netlink = self._talk.netns.netlink
                netlink.configure(self._talk.link.index, addresses, routes, dad=True)
        except OSError as error:
            self._node.log(f"{self.entry.key}: cannot restore {lease.address}: {error}")
        self._detect(lease, now() + _LINK_SECONDS)

    def _detect(self, lease: Lease, until: float) -> None:
        """Give an address that was put back up again if another machine has it meanwhile."""
        self._on_change = None
        ours = self._machine.lease  # which may have been renewed meanwhile
        if self._talk is None or ours is None or ours.address != lease.address:
            return
        is_duplicate = self._is_duplicate(self._talk, lease)
        if is_duplicate is None and now() < until:
            self._await_change(self._talk, partial(self._detect, lease, until), until)
        elif is_duplicate:
            self._perform(self._machine.conflict(now()))
        else:
            self._close_talk()

    def _granted(self, lease: Lease) -> dict[str, Any]:
        """Return the answer to an ADD. Raises MalformedError."""
        result = self._family.result_of(lease, self.entry.priority)
        return {
            "address": result["ips"][0]["address"],
            "server": str(lease.server),
            "result": result,
        }

    def _tell(self, outcome: dict[str, Any] | CNIError) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter(outcome)

    def _fail(self, error: CNIError) -> None:
        """Tell why there is no lease, and end."""
        error = CNIError(error.code, f"{error.msg} (interface '{self.entry.key.ifname}')")
        if self._machine.lease:
            self._give_back(self._machine.lease)
        self._machine.stop()
        self._tell(error)
        self._end()

    def _save(self) -> None:
        try:
            self._node.store.save(self.entry)
        except OSError as error:
            self._node.log(
                f"{self.entry.key}: cannot write its lease, which a restart of the daemon would"
                f" lose: {error.strerror}"
            )

    def _unreachable(self, error: GoneError) -> None:
        """End if the container is dead, or the lease: there is no interface to keep it for."""
        if self._waiters:
            self._fail(CNIError(Code.INTERNAL, str(error)))
            return
        self._node.log(f"{self.entry.key}: {error}")
        self._gone += 1
        lease = self._machine.lease
        is_dead = error.is_all and self._gone >= _GONE_TIMES and not is_hidden(self.entry)
        if lease is None or is_dead:
            if lease:
                give_back_from_host(self._node, self.entry, lease)
            self._machine.stop()
            self._end()

    # --- sockets ---

    def _opened(self, netns: NetNS | None = None) -> link.Talk:
        """Return sockets over the interface; at an ADD, in `netns`, have that up.

        Raises GoneError, OSError.
        """
        entry, is_new = self.entry, netns is not None
        netns = netns or open_recorded(entry, self._node.prefix)
        try:
            found = link.find(netns, entry.key.ifname, entry.index)
            if found is None:
                text = f"there is no interface '{entry.key.ifname}' in '{entry.netns}' any more"
                raise GoneError(text, is_all=False)
            if is_new:
                self._family.prepare(netns, found)
            if is_new and not found.up:
                netns.netlink.set_up(found.index)
            return self._family.talk_over(netns, found)
        except BaseException:
            netns.close()
            raise

    def _listen(self, until: float = 0.0) -> None:
        """Receive answers for a while; an ADD does so until it is given up."""
        assert self._talk is not None
        if self._listening is None:
            self._node.loop.watch(self._talk.sock, self._receive)
        else:
            self._listening.cancel()
        until = until or now() + _LISTEN_SECONDS
        self._listening = self._node.loop.call_at(until, self._end_listening)

    def _end_listening(self) -> None:
        if self._waiters:  # its namespace lives: the runtime holds it
            self._listen()
        else:
            self._close_talk()

    def _close_talk(self) -> None:
        if self._talk is None:
            return
        if self._listening:
            self._listening.cancel()
            self._node.loop.unwatch(self._talk.sock)
        self._end_waiting()
        if self._talk.changes:
            self._node.loop.unwatch(self._talk.changes.sock)
        self._talk.close()
        self._talk = self._listening = self._on_change = None


def give_back_from_host(node: Node, entry: Entry, lease: Lease) -> None:
    """Release a lease whose interface is gone from the host: servers go by the message."""
    its = family.of(entry.key.family)
    try:
        for action in its.machine_of(entry, node.pace, random, lease).stop():
            assert isinstance(action, Send)
            its.release_from_host(node.host, entry, action)
    except OSError as error:
        node.log(f"{entry.key}: cannot release {lease.address} from the host: {error.strerror}")
    else:
        node.log(f"{entry.key}: released {lease.address} from the host, its interface is gone")


def open_recorded(entry: Entry, prefix: str) -> NetNS:
    """Return the namespace of an entry, wherever it is. Raises GoneError, OSError."""
    found = namespaces.find(prefix + entry.netns, entry.netns_id)
    if found is None:
        raise GoneError(f"the network namespace '{entry.netns}' is gone", is_all=True)
    return found


def is_hidden(entry: Entry) -> bool:
    """Tell whether processes of the container may be hidden from this one."""
    return pid_namespace() != FIRST_PID_NAMESPACE and entry.pid_ns != pid_namespace()


def _valid(entry: Entry) -> Lease | None:
    """Return the lease of an entry if it may still be used."""
    lease = entry.lease
    return lease if lease and not entry.is_lost and now() < lease.expire else None


def random() -> float:
    """Return a number from 0 to below 1."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


def _internal(error: Exception) -> CNIError:
    if isinstance(error, CNIError):
        return error
    text = getattr(error, "strerror", "") or str(error)
    return CNIError(Code.INTERNAL, f"cannot ask for an address: {text}")
