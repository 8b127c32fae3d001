"""Answers to calls of the plugin: see plugins/dhcp/rpc.py."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel.netns import NetNS, pid_namespace
from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code
from plugins.dhcp import peer, rpc
from plugins.dhcp.daemon import family, link, store, upkeep
from plugins.dhcp.daemon.allocation import Allocation
from plugins.dhcp.daemon.store import Entry, Key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from cni_common.kernel.link import Link
    from cni_common.spec.wire import Json
    from plugins.dhcp.daemon.loop import Timer
    from plugins.dhcp.daemon.upkeep import Node, Upkeep

_REQUEST_SECONDS = 5.0  # for a whole request to come
_PART_BYTES = 1 << 16
_PAUSE_SECONDS = 0.5  # after a connection that could not be taken
_CONNECTIONS_MAX = 1000
_SPREAD_SECONDS = 1.0  # over which clients ask when their switch is back
_SHARES_MAC = ("ipvlan", "ipvtap")  # an answer to the MAC alone would not find the interface


class Service:
    """All leases, and the calls about them."""

    def __init__(self, node: Node, seconds: float) -> None:
        """`seconds`: after which the daemon gives up looking for an address."""
        self.node = node
        self._seconds = seconds
        self._upkeeps: dict[Key, Upkeep] = {}
        self._connections = 0
        self._refused = ""  # the caller that was refused last

    def resume(self) -> None:
        """Go on with the leases of an earlier process; release those of an earlier boot."""
        for entry in self.node.store.load():
            if entry.boot_id != self.node.boot_id:
                self._release_after_boot(entry)
                continue
            kept = upkeep.Upkeep(self.node, entry, self._forget)
            self._upkeeps[entry.key] = kept
            self.node.loop.call_after(0, kept.resume)  # by itself: one failure is not all leases'

    def work_off(self, directory: str) -> None:
        """Release what was to be released while there was no daemon."""
        try:
            names = sorted(os.listdir(directory))
        except FileNotFoundError:
            return
        for name in names:
            path = f"{directory}/{name}"
            if not name.endswith(".new"):
                try:
                    key = store.read_key(path)
                except (CNIError, KeyError, OSError) as error:
                    self.node.log(f"cannot read '{path}': {error}")
                else:
                    self._release(key)
            with suppress(OSError):
                os.unlink(path)

    def link_returned(self, returned: Collection[int], links: Mapping[int, Link]) -> None:
        """Have the leases behind links that were away asked about (RFC 2131 section 3.2)."""
        ports = {kept.entry.below for kept in self._upkeeps.values()}
        for kept in list(self._upkeeps.values()):
            below = links.get(kept.entry.below)
            if below is None:
                continue
            interfaces = {below.index, below.master} - {0}
            if below.master:  # a bridge's other ports, but for those of containers
                interfaces |= {
                    one.index for one in links.values() if one.master == below.master
                } - ports
            if interfaces & set(returned):
                self.node.loop.call_after(upkeep.random() * _SPREAD_SECONDS, kept.verify)

    def accept(self, listener: socket.socket) -> None:
        """Take a connection of `listener`."""
        try:
            sock, _ = listener.accept()
        except OSError:  # the client has gone, or descriptors are short
            loop = self.node.loop
            loop.unwatch(listener)
            again = partial(self.accept, listener)
            loop.call_after(_PAUSE_SECONDS, lambda: loop.watch(listener, again))
            return
        sock.settimeout(0)
        if self._connections >= _CONNECTIONS_MAX or self._is_stranger(sock):
            sock.close()
            return
        self._connections += 1
        Connection(self, sock)

    def _is_stranger(self, sock: socket.socket) -> bool:
        """Tell whether no process of this node's root calls; one of a container may be root, too.

        The same words are logged once in a row: a stranger can call as often as it likes.
        """
        stranger = peer.stranger(sock)
        if stranger and stranger != self._refused:
            self.node.log(f"refuses a call: {stranger} calls; only this node's root may")
        self._refused = stranger or self._refused
        return bool(stranger)

    def closed(self) -> None:
        """Count a connection no more."""
        self._connections -= 1

    def handle(self, request: Json, fds: list[int], connection: Connection) -> None:
        """Serve one request. Raises CNIError, KeyError, TypeError, ValueError."""
        match request.get("call"):
            case rpc.ALLOCATE:
                self._allocate(request, fds, connection, (4,))
            case rpc.ALLOCATE_FAMILY:
                self._allocate(request, fds, connection, family.NAMES[request["family"]])
            case rpc.RELEASE:
                self._release(_key_in(request))
                connection.answer({})
            case rpc.CHECK:
                connection.answer(self._told(_key_in(request)))
            case rpc.COLLECT:
                connection.answer(self._collect(request))
            case rpc.STATUS:
                connection.answer({"leases": len(self._upkeeps)})
            case other:
                raise CNIError(
                    Code.INTERNAL, f"this daemon does not know the call '{other}': it is older"
                )

    def _allocate(
        self, request: Json, fds: list[int], connection: Connection, versions: Sequence[int]
    ) -> None:
        """Have the leases of these IP versions looked for, all at once."""
        if not fds:
            raise CNIError(Code.INVALID_NETNS, "the call brings no network namespace")
        seconds = min(self._seconds, float(request["seconds"]))
        entries = [self._entry(version, request, fds[0]) for version in versions]
        allocation = Allocation(len(entries), connection.finish)
        connection.on_close = allocation.leave
        for entry in entries:
            if allocation.is_over:  # one has failed at once, and the descriptor is closed
                return
            self._begin(entry, NetNS(entry.netns, os.dup(fds[0])), seconds, allocation)

    def _begin(self, entry: Entry, netns: NetNS, seconds: float, allocation: Allocation) -> None:
        """Have the lease of an entry looked for over `netns`, unless there is one."""
        kept = self._upkeeps.get(entry.key)
        same = kept and (kept.entry.netns_id, kept.entry.index) == (entry.netns_id, entry.index)
        if kept and same and not kept.entry.is_lost:
            netns.close()
            kept.join(allocation.waiter(kept, is_new=False))
            return
        if kept:
            kept.release()
        kept = upkeep.Upkeep(self.node, entry, self._forget)
        self._upkeeps[entry.key] = kept
        kept.acquire(netns, seconds, allocation.waiter(kept, is_new=True))

    def _entry(self, version: int, request: Json, fd: int) -> Entry:
        """Return what the daemon must know of an attachment whose namespace is open."""
        netns, key = NetNS(str(request["netns"]), os.dup(fd)), _key_in(request)
        try:
            found = link.find(netns, key.ifname)
            if found is None:
                raise CNIError(
                    Code.INTERNAL,
                    f"there is no interface '{key.ifname}' in '{request['netns']}': the plugin that"
                    " calls dhcp must make it first",
                )
            below = self._below(netns, found)
            return Entry(
                replace(key, family=version),
                str(request["netns"]),
                netns.identity,
                self.node.boot_id,
                pid_namespace(),
                found.index,
                found.mac,
                {int(code): bytes.fromhex(value) for code, value in request["provided"].items()},
                [int(code) for code in request["requested"]],
                int(request["priority"]),
                self.node.broadcast or found.kind in _SHARES_MAC,
                below,
                self._on_link(below),
            )
        finally:
            netns.close()

    def _below(self, netns: NetNS, found: Link) -> int:
        """Return the host's end of a pair, or the interface under a macvlan; 0: not on the host."""
        if found.peer_nsid is None or found.peer_nsid != netns.netlink.nsid(self.node.host.fd):
            return 0
        return found.peer

    def _on_link(self, below: int) -> str:
        """Return the host's interface by which it is on the link: `below`, or its bridge."""
        port = self.node.host.netlink.link_at(below) if below else None
        link = self.node.host.netlink.link_at(port.master) if port and port.master else port
        return link.name if link else ""

    def _of(self, key: Key) -> Iterator[tuple[int, Upkeep]]:
        """Yield the upkeeps of an attachment by IP version."""
        for version in (4, 6):
            kept = self._upkeeps.get(replace(key, family=version))
            if kept:
                yield version, kept

    def _told(self, key: Key) -> Json:
        """Return what is told of the leases of an attachment, and of the first one by itself."""
        told = {f"ipv{version}": kept.told for version, kept in self._of(key)}
        return {**next(iter(told.values())), "leases": told} if told else {}

    def _release(self, key: Key) -> None:
        for _, kept in list(self._of(key)):
            kept.release()

    def _collect(self, request: Json) -> Json:
        """Release the leases of a network that are of no valid attachment, and of no namespace."""
        valid = {(str(one[0]), str(one[1])) for one in request["valid"]}
        released = 0
        for key, kept in list(self._upkeeps.items()):
            if key.network != request["network"] or (key.containerid, key.ifname) in valid:
                continue
            try:
                upkeep.open_recorded(kept.entry, self.node.prefix).close()
            except upkeep.GoneError:
                kept.release()
                released += 1
        return {"released": released}

    def _release_after_boot(self, entry: Entry) -> None:
        """The node was rebooted: no container of then exists."""
        if entry.lease and not entry.is_lost:
            upkeep.give_back_from_host(self.node, entry, entry.lease)
        self.node.store.remove(entry.key)

    def _forget(self, kept: Upkeep) -> None:
        if self._upkeeps.get(kept.entry.key) is kept:
            del self._upkeeps[kept.entry.key]


class Connection:
    """One request of a plugin, until it is answered or the plugin has gone."""

    def __init__(self, service: Service, sock: socket.socket) -> None:
        self.on_close: Callable[[], object] | None = None
        self._service = service
        self._sock = sock
        self._data = b""
        self._fds: list[int] = []
        self._handled = False
        loop = service.node.loop
        self._overdue: Timer = loop.call_after(_REQUEST_SECONDS, self._close)
        loop.watch(sock, self._receive)

    def answer(self, found: Json) -> None:
        """Send an answer, and close."""
        self._reply({"version": rpc.VERSION, "answer": found})

    def refuse(self, error: CNIError) -> None:
        """Send an error, and close."""
        told = {"code": int(error.code), "msg": error.msg}
        self._reply({"version": rpc.VERSION, "error": told})

    def finish(self, outcome: Json | CNIError) -> None:
        """Send the answer or the error in `outcome`, and close."""
        self.on_close = None
        if isinstance(outcome, CNIError):
            self.refuse(outcome)
        else:
            self.answer(outcome)

    def _reply(self, message: Json) -> None:
        # The answer fits into the socket's buffer: no plugin can keep the daemon waiting.
        with suppress(OSError):
            self._sock.send(rpc.encode(message), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        self._close()

    def _receive(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, _PART_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        self._fds += fds
        if not data:
            self._close()
        elif not self._handled:
            self._data += data
            self._look()

    def _look(self) -> None:
        """Serve the request if it is there."""
        if len(self._data) < rpc.HEAD_BYTES:
            return
        try:
            end = rpc.HEAD_BYTES + rpc.length_in(self._data)
        except ValueError:
            self._service.node.log("a plugin that is not ours calls; both must be of one suite")
            self._close()
            return
        if len(self._data) < end:
            return
        self._handled = True
        self._overdue.cancel()
        try:
            request = wire.decode(self._data[rpc.HEAD_BYTES : end])
            self._service.handle(request, self._fds, self)
        except CNIError as error:
            self.refuse(error)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.refuse(CNIError(Code.INTERNAL, f"the daemon cannot read the call: {error!r}"))
        except OSError as error:
            self.refuse(CNIError(Code.INTERNAL, f"the daemon: {error.strerror or error}"))

    def _close(self) -> None:
        if self._sock.fileno() < 0:
            return
        self._overdue.cancel()
        self._service.node.loop.unwatch(self._sock)
        self._sock.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._service.closed()
        if self.on_close:
            self.on_close()


def _key_in(request: Json) -> Key:
    """Return the attachment that a request is about. Raises KeyError, ValueError."""
    names = [request["network"], request["containerid"], request["ifname"]]
    if not all(isinstance(one, str) and one for one in names):
        raise ValueError("an attachment has three names")
    return Key(*names)
