"""Asks the container runtime which pods it knows (CRI, ListPodSandbox).

gRPC is HTTP/2 with messages behind five bytes. For one call without arguments h2 does, which takes
a thirtieth of grpcio's memory and image.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from h2.connection import H2Connection
    from h2.events import Event

_SECONDS = 5.0  # for the whole call
_BYTES_MAX = 1 << 24  # of an answer: 10,000 pods with long labels have half of that
_STREAM = 1
_HEADERS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/runtime.v1.RuntimeService/ListPodSandbox"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)
_PREFIX = 5  # bytes before a message: compressed or not, length
# Wire types of protobuf, and fields of runtime.v1.ListPodSandboxResponse and PodSandbox
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_ITEMS, _ID = 1, 1


class RuntimeUnknownError(Exception):
    """The runtime did not answer, or not in a way that can be understood."""


def sandboxes(path: str) -> frozenset[str]:
    """Return the ids of all pods that the runtime at the socket `path` knows, also stopped ones.

    Raises RuntimeUnknownError.
    """
    try:
        return frozenset(_ids(_ask(path)))
    except (OSError, ValueError) as error:
        raise RuntimeUnknownError(f"'{path}': {error}") from None


def _ask(path: str) -> bytes:
    """Return the message that answers. Raises OSError, ValueError."""
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.exceptions import H2Error

    until = time.monotonic() + _SECONDS
    connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(_SECONDS)
            sock.connect(path)
            connection.initiate_connection()
            connection.send_headers(_STREAM, _HEADERS)
            connection.send_data(_STREAM, bytes(_PREFIX), end_stream=True)
            return _message(_receive(sock, connection, until))
    except H2Error as error:
        raise ValueError(f"no HTTP/2: {error}") from None


def _receive(sock: socket.socket, connection: H2Connection, until: float) -> bytes:
    """Return the data of the answer. Raises OSError, ValueError, H2Error."""
    body, status = bytearray(), ""
    while True:
        sock.sendall(connection.data_to_send())
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        sock.settimeout(left)
        data = sock.recv(1 << 16)
        if not data:
            raise ValueError("the connection ended before the answer")
        for event in connection.receive_data(data):
            status = _take(event, connection, body) or status
            if status:
                if status != "0":
                    raise ValueError(f"ListPodSandbox failed, gRPC status {status}")
                return bytes(body)


def _take(event: Event, connection: H2Connection, body: bytearray) -> str:
    """Add the data of an event to `body`; return the status where the answer is complete."""
    from h2 import events

    if isinstance(event, events.DataReceived):
        body += event.data or b""
        if len(body) > _BYTES_MAX:
            raise ValueError(f"the answer has more than {_BYTES_MAX} bytes")
        connection.acknowledge_received_data(event.flow_controlled_length or 0, _STREAM)
    if isinstance(event, events.ResponseReceived | events.TrailersReceived):
        return next((str(v) for k, v in event.headers or () if str(k) == "grpc-status"), "")
    if isinstance(event, events.StreamReset | events.ConnectionTerminated):
        return f"of HTTP/2, {event.error_code}"
    return "of no kind" if isinstance(event, events.StreamEnded) else ""


def _message(body: bytes) -> bytes:
    if (
        len(body) < _PREFIX
        or body[0]
        or int.from_bytes(body[1:_PREFIX], "big") + _PREFIX != len(body)
    ):
        raise ValueError("the answer is no message of gRPC, or compressed")
    return body[_PREFIX:]


def _ids(message: bytes) -> Iterator[str]:
    for number, item in _fields(message):
        if number == _ITEMS:
            yield next(text.decode() for field, text in _fields(item) if field == _ID)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each field with a length. Raises ValueError."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _LENGTH:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("the answer is cut short")
            yield number, message[at : at + size]
            at += size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("the answer is no protobuf")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number and the place behind it. Raises ValueError."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        octet = message[at]
        at += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
    raise ValueError("the answer is no protobuf")
