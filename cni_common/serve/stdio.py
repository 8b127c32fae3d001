"""Complete reads and writes of standard streams, by descriptor."""

from __future__ import annotations

import os

STDIN_MIB_MAX = 8


def read_all(fd: int) -> bytes:
    """Return all bytes to the end of a file, which may be non-blocking.

    Raises OSError, also for more than STDIN_MIB_MAX, since memory and time grow with the input.
    """
    parts: list[bytes] = []
    left = STDIN_MIB_MAX << 20
    while left >= 0:
        try:
            part = os.read(fd, 1 << 16)
        except BlockingIOError:
            _wait(fd, for_input=True)
            continue
        if not part:
            return b"".join(parts)
        parts.append(part)
        left -= len(part)
    import errno

    raise OSError(errno.EFBIG, f"it has more than {STDIN_MIB_MAX} MiB")


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, also to a file that does not block. Raises OSError."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            _wait(fd, for_input=False)


def say(fd: int, text: str) -> None:
    """Write a line of text for the log; a stream that is closed or full loses it."""
    data = f"{text}\n".encode("utf-8", "replace")
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        return


def _wait(fd: int, *, for_input: bool) -> None:
    """Wait until `fd` can be read or written: a program with an event loop may pass such pipes."""
    import select

    poller = select.poll()
    poller.register(fd, select.POLLIN if for_input else select.POLLOUT)
    poller.poll()
