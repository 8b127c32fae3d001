"""Files that the agent writes: complete or not at all, and only when their content differs."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cni_common.node.journal import make_directory

_BYTES_MAX = 1 << 26  # the state of 5,000 nodes has a hundredth of that


def replace(path: Path, data: bytes, mode: int = 0o644) -> bool:
    """Give the file `path` the content `data`; return False if it has it already.

    The new file is written beside the old one and renamed into its place: containerd's watcher
    ignores files that come in any other way (the event "create" without "rename"). Raises OSError.
    """
    if read(path) == data:
        return False
    # No runtime reads it: the name ends in no extension of a configuration.
    new = path.with_name(f".{path.name}.new")
    make_directory(str(path.parent), 0o755)
    with suppress(FileNotFoundError):
        new.unlink()
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        new.rename(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
    sync_directory(path.parent)
    return True


def read(path: Path) -> bytes | None:
    """Return the content of a regular file, None where there is none, or one that is too large."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        data = file.read(_BYTES_MAX + 1)
    return None if len(data) > _BYTES_MAX else data


def sync_directory(directory: Path) -> None:
    """Write a directory's entries to the disk. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
