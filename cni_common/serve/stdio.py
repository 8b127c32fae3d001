"""Complete reads and writes of standard streams, by descriptor."""

from __future__ import annotations

import os


def read_all(fd: int) -> bytes:
    """Return all bytes until the end of the file. Raises OSError."""
    return b"".join(iter(lambda: os.read(fd, 1 << 16), b""))


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`. Raises OSError."""
    while data:
        data = data[os.write(fd, data) :]


def say(fd: int, text: str) -> None:
    """Write a line of text for the log; a closed or full stream is ignored."""
    try:
        write_all(fd, f"{text}\n".encode("utf-8", "replace"))
    except OSError:
        return
