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

from cni_common.spec.steps import CALL, NETLINK, NFT, now

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from typing import Any

# linux/netlink.h
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_ECHO, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x8, 0x10
NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND, NLM_F_DUMP = 0x200, 0x400, 0x800, 0x300
NLM_F_NONREC, NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x100, 0x200
NLMSGERR_ATTR_MSG = 1
HEADER_SIZE, NLATTR_SIZE = 16, 4  # bytes of struct nlmsghdr and struct nlattr
_HEADER, _NLATTR = struct.Struct("=IHHII"), struct.Struct("=HH")
_NLA_TYPE_MASK = 0x3FFF  # the type without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_NFNETLINK_MIN = 256  # the types of nfnetlink have a subsystem, not 0, in their second byte
_ANSWERED = NLM_F_ACK | NLM_F_DUMP
# RTM_GETLINK, RTM_GETROUTE, RTM_GETNSID of linux/rtnetlink.h; of linux/netfilter/nf_tables.h, with
# the number of its subsystem, NFT_MSG_GETTABLE, …CHAIN, …RULE, …SET and, with one key, …SETELEM.
_GET_ONE = {18, 26, 90, 0xA01, 0xA04, 0xA07, 0xA0A, 0xA0D}
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
_DUMP_TRIES = 5
_RECEIVE_SECONDS = 30
# Limits of one send: its answers take up to 5 KiB each, and a socket without rights has room for
# twice net.core.rmem_max, 416 KiB.
_PIECE_MESSAGES, _PIECE_BYTES = 64, 1 << 15
_RECEIVE_BYTES = 1 << 20
_SEND_BYTES_MAX = 1 << 26  # a transaction about 65,535 ports of two IP versions takes half of it


class NetlinkError(OSError):
    """The kernel refused a request; `errno` gives the reason, the text names the request too."""

    is_look = False  # whether the request would have changed nothing


@dataclass(frozen=True, slots=True)
class Message:
    """One request: its description for error texts, its type and flags, its body."""

    what: str
    type: int
    flags: int
    body: bytes  # the bytes behind struct nlmsghdr
    read: Callable[[bytes], Any] = bytes  # decodes an answer, nlmsghdr included

    @property
    def is_look(self) -> bool:
        """Tell whether this only reads (RTM_GET… of rtnetlink, …_MSG_GET… of nfnetlink)."""
        return self.type & 3 == 2 if self.type < _NFNETLINK_MIN else self.type % 256 % 3 == 1

    @property
    def has_one_answer(self) -> bool:
        """Tell whether the kernel sends one message to it, which an acknowledgement says again."""
        return self.type in _GET_ONE and self.flags & NLM_F_DUMP != NLM_F_DUMP

    def encode(self, sequence: int, *, without: int = 0) -> bytes:
        """Return the bytes of the message, numbered `sequence`, `without` some of its flags."""
        length, flags = HEADER_SIZE + len(self.body), self.flags & ~without | NLM_F_REQUEST
        return _HEADER.pack(length, self.type, flags, sequence, 0) + self.body


def attribute(kind: int, *payload: bytes) -> bytes:
    """Return a struct nlattr around `payload`; a nest where that consists of attributes."""
    data = payload[0] if len(payload) == 1 else b"".join(payload)
    length = _NLATTR.size + len(data)
    return _NLATTR.pack(length, kind) + data + bytes(-length & 3)


def u16(kind: int, value: int) -> bytes:
    """Return an attribute of 16 bits in the machine's byte order."""
    return attribute(kind, value.to_bytes(2, sys.byteorder))


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
    end = len(data) - 4  # NLATTR_SIZE, as below
    while offset <= end:
        length, kind = unpack(data, offset)
        found.append((kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]))
        offset += (length + 3 & ~3) or 4
    return found


def chosen_attributes(data: bytes, offset: int, kinds: Collection[int]) -> dict[int, bytes]:
    """Return those attributes in `data` from `offset` on whose types are in `kinds`.

    Ends when it has found each type: of a bridge's forty attributes the eleventh matters.
    """
    found = {}
    unpack = _NLATTR.unpack_from
    end = len(data) - 4
    while offset <= end:
        length, kind = unpack(data, offset)
        if kind & 0x3FFF in kinds:  # _NLA_TYPE_MASK
            found[kind & 0x3FFF] = data[offset + 4 : offset + length]
            if len(found) == len(kinds):
                break
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
        _enlarge(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, _RECEIVE_BYTES)
        self._send_bytes = 2 * _PIECE_BYTES  # which one send can have
        self._step = (
            NETLINK if sock.proto == socket.NETLINK_ROUTE else NFT
        )  # what a request is called

    def exchange(
        self, messages: Sequence[Message], *, absent: Collection[int] = ()
    ) -> list[list[Any]]:
        """Send `messages`, each with NLM_F_ACK or NLM_F_DUMP, and return the answers to each.

        The messages are sent in pieces whose answers the socket has room for. Of a piece without a
        dump the last message alone asks for an acknowledgement, and not even that one where it
        `has_one_answer`: the kernel works in their order, and tells of each failure anyway. The
        exchange continues after a failure; the first NetlinkError is raised after all answers. A
        message that fails by one of the errnos in `absent` has no answers, which is no failure.
        ENOBUFS means that answers were lost: it is unknown what the kernel has done, and later
        pieces are not sent.
        """
        answers: list[list[Any]] = []
        failure: NetlinkError | None = None
        for piece in _pieces(messages):
            asked = _Asked(absent)
            has_dump = False
            for number, one in enumerate(piece, self._sequence + 1):
                asked.add(number, one, is_awaited=bool(one.flags & _ANSWERED))
                has_dump = has_dump or one.flags & NLM_F_DUMP == NLM_F_DUMP
            self._sequence += len(piece)
            if self._sequence in asked.awaited and not has_dump:
                asked.awaited = {self._sequence}
            self._ask(asked)
            answers += asked.answers.values()
            failure = failure or asked.failure
            asked.failure = None
            if failure and failure.errno == errno.ENOBUFS:
                break
        if failure:
            try:
                raise failure
            finally:
                del failure  # its traceback has this frame: a circle would keep all callers' data
        return answers

    def transact(self, begin: Message, messages: Sequence[Message], end: Message) -> list[Any]:
        """Send `messages` between `begin` and `end`: nfnetlink carries out all of them or none.

        Return the answers to those with NLM_F_ECHO, in order. The kernel tells of each failure, but
        of success only for the last message: the socket would not have room for thousands of
        answers. Raises NetlinkError; after ENOBUFS it is unknown whether the kernel has carried
        them out.
        """
        asked = _Asked()
        last = self._sequence + 1 + len(messages)
        for number, one in enumerate([begin, *messages, end], self._sequence + 1):
            asked.add(number, one, is_awaited=number == last)
        self._sequence = last + 1
        self._ask(asked)
        failure, asked.failure = asked.failure, None
        if failure:
            try:
                raise failure
            finally:
                del failure  # as in `exchange`
        return [answer for answers in asked.answers.values() for answer in answers]

    def _ask(self, asked: _Asked) -> None:
        """Send the messages of `asked`, and have it take the answers.

        Where the kernel had no room for one, those that had room are taken, since they may tell the
        cause. So no answer is left when the socket is used again.
        """
        since = now()
        self._converse(asked)
        CALL.note(self._step, since)

    def _converse(self, asked: _Asked) -> None:
        try:
            self._send(asked.encode())
        except OSError as error:
            asked.fail(error.errno or 0, min(asked.messages))
            return
        flags = 0
        while asked.awaited:
            try:
                asked.take(self._receive(flags))
            except OSError as error:
                if error.errno == errno.ENOBUFS and not flags:
                    flags = socket.MSG_DONTWAIT
                    continue
                code = errno.ENOBUFS if flags else error.errno or 0
                asked.fail(code, min(asked.awaited))
                return

    def _send(self, data: bytes) -> None:
        """Send `data` by one system call. Raises OSError, EMSGSIZE where it is too long."""
        if len(data) > self._send_bytes:
            self._send_bytes = min(len(data), _SEND_BYTES_MAX)
            _enlarge(self.sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, self._send_bytes)
        self.sock.send(data)

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

        The dump is repeated as `dump` does; answers seen meanwhile count. Sampling ends at the time
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
        return self.next_events() or []

    def next_events(self) -> list[tuple[int, bytes]] | None:
        """Return the events of the next datagram, as `read_events`; None if events were lost."""
        try:
            data = self._receive(socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                raise
            return None if error.errno == errno.ENOBUFS else []
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


class _Asked:
    """Messages that are sent together, and the kernel's answers to them."""

    def __init__(self, absent: Collection[int] = ()) -> None:
        self.messages: dict[int, Message] = {}  # by their sequence numbers
        self.awaited: set[int] = set()  # those whose last answer is to come
        self.answers: dict[int, list[Any]] = {}
        self.failure: NetlinkError | None = None
        self._absent = absent

    def add(self, number: int, message: Message, *, is_awaited: bool) -> None:
        """Add a message, and whether the last answer to it is awaited."""
        self.messages[number] = message
        self.answers[number] = []
        if is_awaited:
            self.awaited.add(number)

    def encode(self) -> bytes:
        """Return the messages; one that is awaited and has no answer asks for acknowledgement."""
        parts = []
        for number, one in self.messages.items():
            needs_it = number in self.awaited and not one.has_one_answer
            parts.append(one.encode(number, without=0 if needs_it else NLM_F_ACK))
        return b"".join(parts)

    def take(self, data: bytes) -> None:
        """Take a datagram of answers. Answers to earlier messages are left alone."""
        for number, kind, flags, part in _parts(data):
            message = self.messages.get(number)
            if message is None:
                continue
            if flags & NLM_F_DUMP_INTR:
                self.fail(errno.EINTR, number, "interrupted")
            if kind == NLMSG_ERROR:
                code, words = _error(flags, part)
                if code and code not in self._absent:
                    self.fail(code, number, words)
                if code and not message.flags & _ANSWERED:  # the frame of a transaction was refused
                    self.awaited.clear()
            is_end = kind in (NLMSG_ERROR, NLMSG_DONE)
            if not is_end:
                self.answers[number].append(message.read(part))
            if is_end or message.has_one_answer:
                self.awaited.discard(number)

    def fail(self, code: int, number: int, words: str = "") -> None:
        """Note the failure of a message, unless one has failed before."""
        if self.failure is None:
            message = self.messages[number]
            self.failure = NetlinkError(code, f"{message.what}: {words or os.strerror(code)}")
            self.failure.is_look = message.is_look


def _pieces(messages: Sequence[Message]) -> Iterable[Sequence[Message]]:
    """Return `messages`, as many at a time as are to go by one send."""
    if len(messages) == 1:
        return [messages]  # as most are
    return _cut(messages)


def _cut(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    start = size = 0
    for number, message in enumerate(messages):
        if number - start == _PIECE_MESSAGES or size > _PIECE_BYTES:
            yield messages[start:number]
            start, size = number, 0
        size += len(message.body)
    if start < len(messages):
        yield messages[start:]


def _enlarge(sock: socket.socket, forced: int, plain: int, size: int) -> None:
    """Give a buffer of the socket `size` bytes; within the system's limit without CAP_NET_ADMIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, plain, size)


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
    if not code:
        return 0, ""
    words = os.strerror(-code)
    if flags & NLM_F_ACK_TLVS:
        (request,) = struct.unpack_from("=I", part, HEADER_SIZE + 4)
        offset = HEADER_SIZE + 4 + (HEADER_SIZE if flags & NLM_F_CAPPED else request)
        own = attributes(part, offset).get(NLMSGERR_ATTR_MSG)
        if own:
            words += f" ({string_of(own)})"
    return -code, words
