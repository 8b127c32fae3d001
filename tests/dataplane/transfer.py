"""Ways to bring a file across a connection: each function moves all, and says nothing of it."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.dataplane.wiring import SECONDS

_CHUNK = 100_003  # no multiple of a page or segment
_SO_ZEROCOPY, _MSG_ZEROCOPY = 60, 0x4000000  # asm-generic/socket.h, linux/socket.h
_ZEROCOPY_RANGE = struct.Struct("=8x2I")  # struct sock_extended_err, linux/errqueue.h
_SKIPPED = 77  # of uring.c: the kernel refuses

Mover = Callable[[socket.socket, Path], None]


class Method(NamedTuple):
    """How one side sends a file, and the other receives one."""

    send: Mover
    receive: Mover


def send_by_calls(sock: socket.socket, path: Path) -> None:
    """Send by sendall, as most programs do."""
    sock.sendall(path.read_bytes())
    sock.shutdown(socket.SHUT_WR)


def receive_by_calls(sock: socket.socket, path: Path) -> None:
    """Receive by recv."""
    with path.open("wb") as file:
        while data := sock.recv(_CHUNK):
            file.write(data)


def send_by_sendfile(sock: socket.socket, path: Path) -> None:
    """Send by sendfile: from the page cache to the socket."""
    with path.open("rb") as file:
        offset = 0
        while sent := os.sendfile(sock.fileno(), file.fileno(), offset, _CHUNK):
            offset += sent
    sock.shutdown(socket.SHUT_WR)


def send_by_splice(sock: socket.socket, path: Path) -> None:
    """Send by splice: from the file to a pipe, and on to the socket."""
    with path.open("rb") as file:
        _splice_all(file.fileno(), sock.fileno())
    sock.shutdown(socket.SHUT_WR)


def receive_by_splice(sock: socket.socket, path: Path) -> None:
    """Receive by splice: from the socket to a pipe, and on to the file."""
    with path.open("wb") as file:
        _splice_all(sock.fileno(), file.fileno())


def _splice_all(source: int, target: int) -> None:
    out, into = os.pipe()
    try:
        while size := os.splice(source, into, _CHUNK):
            while size:
                size -= os.splice(out, target, size)
    finally:
        os.close(out)
        os.close(into)


def send_by_mmap(sock: socket.socket, path: Path) -> None:
    """Send out of a file's mapping."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        sock.sendall(memory)
    sock.shutdown(socket.SHUT_WR)


def receive_by_mmap(sock: socket.socket, path: Path) -> None:
    """Receive into a file's mapping, which is larger than what comes."""
    with path.open("w+b") as file:
        os.ftruncate(file.fileno(), 64 << 20)
        with mmap.mmap(file.fileno(), 0) as memory, memoryview(memory) as view:
            offset = 0
            while size := sock.recv_into(view[offset:], _CHUNK):
                offset += size
        os.ftruncate(file.fileno(), offset)


def send_by_zerocopy(sock: socket.socket, path: Path) -> None:
    """Send with MSG_ZEROCOPY: the kernel takes the pages, and tells when it has done with them."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    data = memoryview(path.read_bytes())
    calls = told = offset = 0
    while offset < len(data):
        try:
            offset += sock.send(data[offset : offset + _CHUNK], _MSG_ZEROCOPY)
            calls += 1
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # it wants to tell first
                raise
        told += _told(sock)
    sock.shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + SECONDS
    while told < calls:
        assert time.monotonic() < deadline, f"told of {told} of {calls} calls"
        told += _told(sock)


def _told(sock: socket.socket) -> int:
    """Return for how many more calls the kernel has done with the pages."""
    try:
        _, ((_, _, error),), _, _ = sock.recvmsg(0, 256, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        time.sleep(0.001)
        return 0
    first, last = _ZEROCOPY_RANGE.unpack_from(error)
    return int(last - first + 1)


def _by_uring(program: Path, mode: str) -> Mover:
    def move(sock: socket.socket, path: Path) -> None:
        receives = mode == "receive"
        with path.open("w+b" if receives else "rb") as file:
            done = subprocess.run(
                [program, mode, str(sock.fileno())],
                stdin=subprocess.DEVNULL if receives else file,
                stdout=file if receives else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[sock.fileno()],
                text=True,
                timeout=4 * SECONDS,
                check=False,
            )
        if done.returncode == _SKIPPED:
            pytest.skip(f"no io_uring here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr

    return move


_METHODS = {
    "calls": Method(send_by_calls, receive_by_calls),
    "sendfile": Method(send_by_sendfile, receive_by_calls),
    "splice": Method(send_by_splice, receive_by_splice),
    "mmap": Method(send_by_mmap, receive_by_mmap),
    "zerocopy": Method(send_by_zerocopy, receive_by_calls),
}
_MODES = {"io_uring": "send", "io_uring zerocopy": "send-zc"}  # of uring.c
NAMES = (*_METHODS, *_MODES)


def method(name: str, program: Callable[[str], Path]) -> Method:
    """Return the method called `name`; io_uring skips the test where the kernel refuses it."""
    if name in _METHODS:
        return _METHODS[name]
    uring = program("uring")
    return Method(_by_uring(uring, _MODES[name]), _by_uring(uring, "receive"))
