"""Netlink requests and answers. The only file that knows pyroute2.

pyroute2's message classes encode and decode; its sockets stay out, because they start an event
loop, cost ten times as much per request, and open a socket per thread wherever that thread is.
"""

import errno
import os
import socket
import struct
import sys
from dataclasses import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


def _enter_pyroute2_quietly() -> None:
    """Make pyroute2's submodules importable without running its __init__ and 370 modules.

    Nothing in this process may import pyroute2 for real afterwards; the version is pinned.
    """
    from importlib.util import find_spec, module_from_spec  # noqa: PLC0415 - used once, here

    spec = find_spec("pyroute2")
    if spec is None:
        raise ImportError("pyroute2 is not installed")
    sys.modules.setdefault("pyroute2", module_from_spec(spec))


_enter_pyroute2_quietly()
from pyroute2.netlink import nla, nlmsg  # noqa: E402, TID253 - after the line above
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: E402, TID253 - as above
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # noqa: E402, TID253 - as above

__all__ = [
    "Channel",
    "Message",
    "NetlinkError",
    "ifaddrmsg",
    "nla",
    "nlmsg",
    "rtmsg",
]

# linux/netlink.h
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x10
NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND, NLM_F_DUMP = 0x200, 0x400, 0x800, 0x300
NLM_F_NONREC, NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x100, 0x200
NLMSGERR_ATTR_MSG = 1
_HEADER = struct.Struct("=IHHII")
_DUMP_TRIES = 5
_RECEIVE_SECONDS = 30


class NetlinkError(OSError):
    """The kernel refused a request; `errno` says why, the text also what was asked."""


@dataclass(slots=True)
class Message:
    """One request: what it does (for error texts), its type and flags, its body."""

    what: str
    type: int
    flags: int
    body: nlmsg
    reader: "Callable[[bytes], Any] | None" = None  # of an answer; None: the body's own class
    _encoded: bytes = field(default=b"", init=False)

    def encode(self, sequence: int) -> bytes:
        """Return the bytes of the message under the number `sequence`."""
        if not self._encoded:  # a body can be encoded once only
            self.body["header"] = {"type": self.type, "flags": self.flags | NLM_F_REQUEST}
            self.body.encode()
            self._encoded = bytes(self.body.data)
        length, kind, flags, _, port = _HEADER.unpack_from(self._encoded)
        header = _HEADER.pack(length, kind, flags, sequence, port)
        return header + self._encoded[_HEADER.size :]

    def read(self, data: bytes) -> "Any":
        """Return the answer in `data`."""
        if self.reader:
            return self.reader(data)
        answer = type(self.body)(data)
        answer.decode()
        return answer


class Channel:
    """Requests and answers on one netlink socket. A channel belongs to the thread that uses it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sequence = 0
        sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        timeout = struct.pack("@ll", _RECEIVE_SECONDS, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)

    def exchange(self, messages: "Sequence[Message]") -> "list[list[Any]]":
        """Send `messages` at once and return the answers to each, decoded by its own class.

        The kernel goes on after a failure; the first one is raised when all are answered.
        Messages with neither NLM_F_ACK nor NLM_F_DUMP get no answer of their own.
        """
        first = self._sequence + 1
        self._sequence += len(messages)
        numbered = list(enumerate(messages, first))
        self._sock.send(b"".join(message.encode(number) for number, message in numbered))
        awaited = {
            number for number, message in numbered if message.flags & (NLM_F_ACK | NLM_F_DUMP)
        }
        answers: dict[int, list[Any]] = {number: [] for number, _ in numbered}
        failure: NetlinkError | None = None
        while awaited:
            data = self._sock.recv(1 << 17)
            for number, kind, flags, part in _parts(data):
                if number not in answers:
                    continue
                message = messages[number - first]
                if flags & NLM_F_DUMP_INTR:
                    failure = failure or NetlinkError(errno.EINTR, f"{message.what}: interrupted")
                if kind == NLMSG_ERROR:
                    code, text = _error(flags, part)
                    if code and not failure:
                        failure = NetlinkError(code, f"{message.what}: {text}")
                    if code and number not in awaited:  # the frame of a batch was refused
                        awaited.clear()
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    awaited.discard(number)
                else:
                    answers[number].append(message.read(part))
        if failure:
            raise failure
        return list(answers.values())

    def dump(self, message: Message) -> "list[Any]":
        """Return all answers to a dump, asked again when the kernel's list changed meanwhile."""
        for attempt in range(_DUMP_TRIES):
            try:
                return self.exchange([message])[0]
            except NetlinkError as error:
                if error.errno != errno.EINTR or attempt == _DUMP_TRIES - 1:
                    raise
        raise AssertionError  # pragma: no cover - the loop returns or raises

    def await_event(self, seconds: float) -> bool:
        """Wait for something to arrive on a subscribed channel; False when nothing did."""
        self._sock.settimeout(max(seconds, 0.001))
        try:
            self._sock.recv(1 << 17)
        except TimeoutError:
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # events were lost: something did happen
                raise
        return True

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def _parts(data: bytes) -> "Sequence[tuple[int, int, int, bytes]]":
    """Return (sequence, type, flags, bytes) of each message in `data`."""
    parts, offset = [], 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, number, _ = _HEADER.unpack_from(data, offset)
        parts.append((number, kind, flags, data[offset : offset + length]))
        offset += (length + 3) & ~3
    return parts


def _error(flags: int, part: bytes) -> tuple[int, str]:
    """Return errno and text of an NLMSG_ERROR, with the kernel's own words where it has any."""
    (code,) = struct.unpack_from("=i", part, _HEADER.size)
    text = os.strerror(-code)
    if flags & NLM_F_ACK_TLVS:
        (request,) = struct.unpack_from("=I", part, _HEADER.size + 4)
        offset = _HEADER.size + 4 + (_HEADER.size if flags & NLM_F_CAPPED else request)
        while offset + 4 <= len(part):
            length, kind = struct.unpack_from("=HH", part, offset)
            if kind == NLMSGERR_ATTR_MSG:
                text += f" ({part[offset + 4 : offset + length].rstrip(bytes(1)).decode()})"
            offset += max(4, (length + 3) & ~3)
    return -code, text
