"""Netlink: requests and answers on a socket, and the attributes in them (netlink(7)).

Packed by hand: that takes a tenth of the time of a library's classes, and no import.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

# linux/netlink.h
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_ECHO, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x8, 0x10
NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND, NLM_F_DUMP = 0x200, 0x400, 0x800, 0x300
NLM_F_NONREC, NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x100, 0x200
NLMSGERR_ATTR_MSG = 1
HEADER_SIZE = 16  # bytes of struct nlmsghdr
_HEADER, _NLATTR = struct.Struct("=IHHII"), struct.Struct("=HH")
_NLA_TYPE_MASK = 0x3FFF  # the type without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_DUMP_TRIES = 5
_RECEIVE_SECONDS = 30


class NetlinkError(OSError):
    """The kernel refused a request; `errno` gives the reason, the text names the request too."""


@dataclass(frozen=True, slots=True)
class Message:
    """One request: its description for error texts, its type and flags, its body."""

    what: str
    type: int
    flags: int
    body: bytes  # the bytes behind struct nlmsghdr
    read: Callable[[bytes], Any] = bytes  # decodes an answer, nlmsghdr included

    def encode(self, sequence: int) -> bytes:
        """Return the bytes of the message, with the sequence number `sequence`."""
        length, flags = HEADER_SIZE + len(self.body), self.flags | NLM_F_REQUEST
        return _HEADER.pack(length, self.type, flags, sequence, 0) + self.body


def attribute(kind: int, *payload: bytes) -> bytes:
    """Return a struct nlattr around `payload`; a nest where that consists of attributes."""
    data = b"".join(payload)
    length = _NLATTR.size + len(data)
    return _NLATTR.pack(length, kind) + data + bytes(-length & 3)


def u32(kind: int, value: int) -> bytes:
    """Return an attribute of 32 bits in the machine's byte order."""
    return attribute(kind, value.to_bytes(4, sys.byteorder))


def be32(kind: int, value: int) -> bytes:
    """Return an attribute of 32 bits in network byte order."""
    return attribute(kind, value.to_bytes(4, "big"))


def string(kind: int, value: str) -> bytes:
    """Return an attribute with a string and its NUL."""
    return attribute(kind, value.encode("utf-8", "surrogateescape"), bytes(1))


def each_attribute(data: bytes, offset: int = 0) -> list[tuple[int, bytes]]:
    """Return type and payload of each attribute in `data` from `offset` on."""
    found = []
    unpack = _NLATTR.unpack_from
    end = len(data) - 4  # bytes of struct nlattr, as below
    while offset <= end:
        length, kind = unpack(data, offset)
        found.append((kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]))
        offset += (length + 3 & ~3) or 4
    return found


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes in `data` by their types; the last of several of one type."""
    return dict(each_attribute(data, offset))


def number_of(payload: bytes | None) -> int:
    """Return an attribute's number, in the machine's byte order; 0 if it is absent."""
    return int.from_bytes(payload, sys.byteorder) if payload else 0


def string_of(payload: bytes | None) -> str:
    """Return an attribute's string, "" if it is absent."""
    return (payload or b"").rstrip(bytes(1)).decode("utf-8", "surrogateescape")


class Channel:
    """Requests and answers on one netlink socket. A channel belongs to the thread that uses it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._sequence = 0
        sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        _set_strict(sock)
        timeout = struct.pack("@ll", _RECEIVE_SECONDS, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)

    def exchange(self, messages: Sequence[Message]) -> list[list[Any]]:
        """Send `messages` at once and return the answers to each, decoded by its own class.

        The kernel continues after a failure; the first NetlinkError is raised after all answers.
        Messages with neither NLM_F_ACK nor NLM_F_DUMP get no answer of their own.
        """
        first = self._sequence + 1
        self._sequence += len(messages)
        numbered = list(enumerate(messages, first))
        self.sock.send(b"".join(message.encode(number) for number, message in numbered))
        awaited = {
            number for number, message in numbered if message.flags & (NLM_F_ACK | NLM_F_DUMP)
        }
        answers: dict[int, list[Any]] = {number: [] for number, _ in numbered}
        failure: NetlinkError | None = None
        while awaited:
            data = self._receive()
            for number, kind, flags, part in _parts(data):
                if number not in answers:
                    continue
                message = messages[number - first]
                if flags & NLM_F_DUMP_INTR:
                    failure = failure or NetlinkError(errno.EINTR, f"{message.what}: interrupted")
                if kind == NLMSG_ERROR:
                    code, words = _error(flags, part)
                    if code and not failure:
                        failure = NetlinkError(code, f"{message.what}: {words}")
                    if code and number not in awaited:  # the frame of a batch was refused
                        awaited.clear()
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    awaited.discard(number)
                else:
                    answers[number].append(message.read(part))
        if failure:
            raise failure
        return list(answers.values())

    def dump(self, message: Message) -> list[Any]:
        """Return all answers to a dump, repeated if the kernel's list changed meanwhile.

        Raises NetlinkError.
        """
        for attempt in range(_DUMP_TRIES):
            try:
                return self.exchange([message])[0]
            except NetlinkError as error:
                if error.errno != errno.EINTR or attempt == _DUMP_TRIES - 1:
                    raise
        raise AssertionError  # pragma: no cover - the loop returns or raises

    def sample(self, message: Message, found: set[Any], *, until: float, at_most: int) -> str:
        """Add the answers to a dump to `found`; return the reason if some may be missing, or "".

        The dump is repeated as `dump` does; what was seen meanwhile counts. It ends at the time
        `until` of the monotonic clock, and when `found` has `at_most` members. To be used where
        others rule in the namespace; afterwards the channel can only be closed. Raises OSError.
        """
        for _ in range(_DUMP_TRIES):
            self._sequence += 1
            self.sock.send(message.encode(self._sequence))
            interrupted = False
            for kind, flags, part in self._answers(self._sequence, until):
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_ERROR:
                    code, words = _error(flags, part)
                    raise NetlinkError(code, f"{message.what}: {words}")
                if kind != NLMSG_DONE:
                    found.add(message.read(part))
                if len(found) >= at_most:
                    return "there are too many"
            if not interrupted:
                return ""
        return "they change all the time"

    def _answers(self, sequence: int, until: float) -> Iterator[tuple[int, int, bytes]]:
        """Yield type, flags and bytes of each answer to a dump. Raises OSError.

        Datagrams of other senders are dropped, as `_receive` does; a flood of them ends at `until`.
        """
        kind = 0
        while kind not in (NLMSG_DONE, NLMSG_ERROR):
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "that takes too long")
            self.sock.settimeout(left)
            data, (sender, _groups) = self.sock.recvfrom(1 << 16)
            parts = _parts(data) if sender == 0 else ()
            for number, kind, flags, part in parts:
                if number == sequence:
                    yield kind, flags, part

    def await_event(self, seconds: float) -> bool:
        """Wait for an event on a subscribed channel; return False if none arrived.

        All events that have arrived are consumed, since the caller then reads the state once.
        """
        self.sock.settimeout(max(seconds, 0.001))
        arrived = False
        try:
            while self._receive():
                arrived = True
                self.sock.settimeout(0)
        except (TimeoutError, BlockingIOError):
            return arrived
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # events were lost, so there were events
                raise
        return True

    def read_events(self) -> list[tuple[int, bytes]]:
        """Return type and bytes of each event that has arrived on a subscribed channel."""
        try:
            data = self._receive(socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                raise
            return []
        return [(kind, part) for _, kind, _, part in _parts(data)]

    def _receive(self, flags: int = 0) -> bytes:
        """Return the next datagram of the kernel. Raises OSError.

        Datagrams of other senders are dropped: a process with CAP_NET_ADMIN in the namespace, as in
        some containers, can send to our socket, too.
        """
        while True:
            data, (sender, _groups) = self.sock.recvfrom(1 << 16, flags)
            if sender == 0:
                return data

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


def _set_strict(sock: socket.socket) -> None:
    """Let dumps filter by interface, if the kernel can (NETLINK_GET_STRICT_CHK, Linux 4.20)."""
    try:
        sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
    except OSError:
        return


def _parts(data: bytes) -> Sequence[tuple[int, int, int, bytes]]:
    """Return (sequence, type, flags, bytes) of each message in `data`."""
    parts, offset = [], 0
    while offset + HEADER_SIZE <= len(data):
        length, kind, flags, number, _ = _HEADER.unpack_from(data, offset)
        parts.append((number, kind, flags, data[offset : offset + length]))
        offset += (length + 3) & ~3
    return parts


def _error(flags: int, part: bytes) -> tuple[int, str]:
    """Return errno and text of an NLMSG_ERROR, with the kernel's extended ack if there is one."""
    (code,) = struct.unpack_from("=i", part, HEADER_SIZE)
    words = os.strerror(-code)
    if code and flags & NLM_F_ACK_TLVS:
        (request,) = struct.unpack_from("=I", part, HEADER_SIZE + 4)
        offset = HEADER_SIZE + 4 + (HEADER_SIZE if flags & NLM_F_CAPPED else request)
        own = attributes(part, offset).get(NLMSGERR_ATTR_MSG)
        if own:
            words += f" ({string_of(own)})"
    return -code, words
