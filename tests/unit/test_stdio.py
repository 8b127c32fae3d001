"""cni_common/serve/stdio.py: standard streams that do not block, and some that nobody reads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from cni_common.serve.stdio import read_all, say, write_all

CHUNK = b"x" * 4096


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that does not block, as a program with an event loop may pass it."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            continue  # the test has closed it


def fill(writer: int) -> int:
    """Write until there is no room; return the number of bytes."""
    size = 0
    try:
        while True:
            size += os.write(writer, CHUNK)
    except BlockingIOError:
        return size


def test_a_read_waits_for_the_end_of_input(pipe: tuple[int, int]) -> None:
    """A stdin that is empty for now is waited for, as the reference plugins do."""
    reader, writer = pipe

    def write() -> None:
        os.write(writer, b"late")
        os.close(writer)

    timer = threading.Timer(0.05, write)
    timer.start()

    assert read_all(reader) == b"late"
    timer.join()


def test_a_write_waits_for_room(pipe: tuple[int, int]) -> None:
    """A stdout that is full for now gets the whole result."""
    reader, writer = pipe
    size = fill(writer)
    received: list[int] = []

    def drain() -> None:
        os.set_blocking(reader, True)
        while sum(received) < size + len(CHUNK):
            received.append(len(os.read(reader, 1 << 16)))

    timer = threading.Timer(0.05, drain)
    timer.start()

    write_all(writer, CHUNK)
    timer.join()
    assert sum(received) == size + len(CHUNK)


def test_a_log_line_waits_for_nobody(pipe: tuple[int, int]) -> None:
    """A stderr that nobody empties costs its lines, not the call."""
    _, writer = pipe
    fill(writer)

    say(writer, "lost")
