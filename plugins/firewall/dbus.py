"""A call over D-Bus: the part of its protocol that firewalld needs.

Numbers are those of the D-Bus specification. Arguments are strings; an answer is a string, a number
or a truth value.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    Value = str | bool | int

ADDRESS = "unix:path=/var/run/dbus/system_bus_socket"
_BUS, _BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
_SECONDS = 5  # for an answer: other calls wait meanwhile for the firewall's lock
_METHOD_CALL, _METHOD_RETURN, _ERROR = 1, 2, 3
_NO_AUTO_START = 2  # the bus must not start a service for this call
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = (
    *range(1, 6),
    6,
    8,
)
_HEADER = 16  # bytes up to the header's fields
_MESSAGE_MAX = 1 << 27  # bytes
_LINE_MAX = 4096  # bytes of an answer during authentication


class DBusError(Exception):
    """The other side refused a call: `name` is the error's, the text its message."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name


class Bus:
    """A connection to a message bus."""

    def __init__(self, addresses: str) -> None:
        """Connect to the first reachable address. Raises OSError."""
        self._serial = 0
        self._sock = _connect(addresses)
        try:
            self._authenticate()
            self.call(_BUS, _BUS_PATH, _BUS, "Hello")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._sock.close()

    def has_owner(self, name: str) -> bool:
        """Tell whether the name has an owner on the bus."""
        return bool(self.call(_BUS, _BUS_PATH, _BUS, "NameHasOwner", name))

    def call(
        self, destination: str, path: str, interface: str, member: str, *arguments: str
    ) -> Value | None:
        """Call a method with strings and return what it returns, the first value.

        Raises DBusError, OSError.
        """
        self._serial += 1
        header = [
            (_PATH, "o", path),
            (_INTERFACE, "s", interface),
            (_MEMBER, "s", member),
            (_DESTINATION, "s", destination),
        ]
        self._sock.sendall(encode_call(self._serial, header, arguments))
        while True:
            kind, head, body = self._receive()
            if head.get(_REPLY_SERIAL) != self._serial:
                continue  # a signal
            signature = str(head.get(_SIGNATURE, ""))
            answer = value(signature[0], body, 0, head["order"])[0] if signature else None
            if kind == _ERROR:
                raise DBusError(str(head.get(_ERROR_NAME, "")), str(answer or ""))
            return answer

    def _authenticate(self) -> None:
        uid = str(os.geteuid()).encode().hex()
        self._sock.sendall(b"\0AUTH EXTERNAL " + uid.encode() + b"\r\n")
        line = b""
        while not line.endswith(b"\r\n") and len(line) < _LINE_MAX:
            line += self._read(1)
        if not line.startswith(b"OK "):
            raise PermissionError(1, f"the message bus refuses root: {line.decode('latin-1')!r}")
        self._sock.sendall(b"BEGIN\r\n")

    def _receive(self) -> tuple[int, dict[int | str, Value], bytes]:
        start = self._read(_HEADER)
        order = "<" if start[:1] == b"l" else ">"
        body_length, _, fields_length = struct.unpack_from(f"{order}III", start, 4)
        if body_length + fields_length > _MESSAGE_MAX:
            raise OSError(90, "the message bus sent too long a message")
        data = self._read(fields_length + -fields_length % 8)
        head: dict[int | str, Value] = dict(fields(data[:fields_length], order))
        head["order"] = order
        return start[1], head, self._read(body_length)

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self._sock.recv(length - len(data))
            if not part:
                raise ConnectionResetError(104, "the message bus has hung up")
            data += part
        return data


def encode_call(
    serial: int, parts: list[tuple[int, str, str]], arguments: tuple[str, ...]
) -> bytes:
    """Return the message of a method call; `parts` are its header's number, type and text each."""
    parts = [*parts, (_SIGNATURE, "g", "s" * len(arguments))] if arguments else parts
    header = b""
    for number, kind, text in parts:
        header += bytes(-len(header) % 8) + bytes([number, 1]) + kind.encode() + bytes(1)
        header += _short(text) if kind == "g" else _string(text)
    body = b""
    for text in arguments:
        body += bytes(-len(body) % 4) + _string(text)
    start = struct.pack("<cBBBII", b"l", _METHOD_CALL, _NO_AUTO_START, 1, len(body), serial)
    return start + struct.pack("<I", len(header)) + header + bytes(-len(header) % 8) + body


def _connect(addresses: str) -> socket.socket:
    failure: OSError = FileNotFoundError(2, f"no address of a message bus in '{addresses}'")
    for address in addresses.split(";"):
        path = path_of(address)
        if not path:
            continue
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(_SECONDS)
            sock.connect(path)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def path_of(address: str) -> bytes:
    """Return the socket's path or abstract name in an address, b"" for another transport."""
    transport, _, rest = address.partition(":")
    options = dict(part.partition("=")[::2] for part in rest.split(","))
    text = options.get("path") or "\0" + options.get("abstract", "")
    if transport != "unix" or text == "\0":
        return b""
    first, *escaped = text.split("%")
    data = os.fsencode(first)
    try:
        for part in escaped:
            data += bytes.fromhex(part[:2]) + os.fsencode(part[2:])
    except ValueError:
        return b""
    return data


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    return struct.pack("<I", len(data)) + data + bytes(1)


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode() + bytes(1)


def fields(data: bytes, order: str) -> Iterator[tuple[int, Value]]:
    """Yield number and value of each field of a header."""
    position = 0
    while position + 4 <= len(data):
        number, kind = data[position], chr(data[position + 2])
        found, position = value(kind, data, position + 4, order)
        position += -position % 8
        yield number, found


def value(kind: str, data: bytes, position: int, order: object) -> tuple[Value, int]:
    """Return a value of a basic type, and its end. Raises OSError for another type."""
    if kind == "g":
        end = position + 1 + data[position]
        return data[position + 1 : end].decode(), end + 1
    if kind not in "sobu":
        raise OSError(71, f"the message bus sent a value of type '{kind}'")
    position += -position % 4
    (number,) = struct.unpack_from(f"{order}I", data, position)
    position += 4
    if kind in "so":
        end = position + number
        return data[position:end].decode("utf-8", "replace"), end + 1
    return (bool(number) if kind == "b" else int(number)), position
