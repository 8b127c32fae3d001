"""Directories and files of ours, and the file of an attachment record.

A record is lines of JSON, the last maybe cut short.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from typing import Any

    from cni_common.spec.wire import Json

_SPARE = 16  # descriptors: more than a DEL has open at the same time
_BYTES_MAX = 1 << 26  # a record with 10,000 host ports has a tenth of that
# Keys of any record, and those that most records have: all values are texts.
_IDENTITY = ("plugin", "network", "containerid", "ifname")
_TEXTS = (*_IDENTITY, "netns", "netns_id", "stdin", "cni_args", "cni_path")
_KINDS = {
    stat.S_IFREG: "",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFSOCK: "a socket",
}


def make_directory(path: str, mode: int) -> None:
    """Make the directory `path` and missing ones above it, each with `mode` under any umask.

    A directory that exists stays as it is. Raises OSError.
    """
    missing = [path]
    while True:
        try:
            _make_one(missing[-1], mode)
            break
        except FileNotFoundError:
            parent = os.path.dirname(missing[-1])
            if parent in ("", missing[-1]):
                raise
            missing.append(parent)
    # Above `missing` all is there: behind a dangling link, and in /proc, this still fails.
    for one in reversed(missing[:-1]):
        _make_one(one, mode)


def _make_one(path: str, mode: int) -> None:
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    os.chmod(path, mode)


def make_private_directory(path: str) -> None:
    """Make `path`, and what is missing above it, 0700. Raises OSError, see `refuse_shared`."""
    make_directory(path, 0o700)
    refuse_shared(path)


def refuse_shared(path: str) -> None:
    """Raise SharedDirectoryError when others can change what is in the directory `path`."""
    status = os.stat(path, follow_symlinks=False)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise SharedDirectoryError(
            errno.EPERM, "others can write there: it must be root's, with mode 0700", path
        )


class SharedDirectoryError(PermissionError):
    """A directory in which others can change what is there: nothing in it is believed."""


class OddFileError(CNIError):
    """Something that no call has made is in the place of a file of ours."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(
            Code.IO_FAILURE, f"'{path}' is {kind}, where a file of this suite belongs; remove it"
        )
        self.kind = kind


def open_file(path: str, flags: int) -> int:
    """Open a file of ours if it is a regular file, and never wait. Raises OddFileError, OSError."""
    status = os.stat(path, follow_symlinks=False)  # first: to open a device can do anything
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
    if not kind and status.st_nlink > 1:
        kind = "a file that has other names"
    if kind:
        raise OddFileError(path, kind)
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def append(fd: int, line: bytes, *, is_whole: bool = False) -> None:
    """Add `line`; `is_whole` says that the last one is, and spares the look."""
    size = 0 if is_whole else os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":  # a kill cut the last line short
        line = b"\n" + line
    # One write, so that no reader meets half a line unless the disk is full.
    if os.write(fd, line) != len(line):
        raise OSError(28, "no space left for the attachment record")


def replace(fd: int, line: bytes) -> None:
    """Have a file opened with O_APPEND contain `line` alone.

    A full disk or a kill leaves what could be read of it before, or all of `line`. Raises OSError.
    """
    size = os.fstat(fd).st_size
    try:
        append(fd, line)  # now there is room for it, also at the beginning
    except OSError:
        os.ftruncate(fd, size)
        raise
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
    os.pwrite(fd, line, 0)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    os.ftruncate(fd, len(line))


def read(fd: int) -> tuple[dict[str, Any], str]:
    """Return the facts in a file, and what in it cannot be read, "" for nothing."""
    try:
        size = os.fstat(fd).st_size
        data = os.pread(fd, size, 0) if size <= _BYTES_MAX else b""
    except OSError as error:
        return {}, f"it cannot be read: {error.strerror}"
    if size > _BYTES_MAX:
        return {}, f"it has {size} bytes, and no record has more than {_BYTES_MAX}"
    facts: dict[str, Any] = {}
    damage = ""
    *lines, last = data.split(b"\n")
    for number, line in enumerate([*lines, last] if last else lines, 1):
        try:
            noted = wire.decode(line)
        except CNIError as error:
            # A kill cuts the last line short; another line only if a call went on behind it.
            goes_on = number < len(lines) or (number == len(lines) and last)
            if number <= len(lines) and not (goes_on and _is_cut_short(line, error.__context__)):
                damage = damage or f"line {number} cannot be read"
            continue
        facts, damage = (dict(noted), "") if "format" in noted else ({**facts, **noted}, damage)
    return facts, damage


def _is_cut_short(line: bytes, error: BaseException | None) -> bool:
    """Tell whether a line is the beginning of a JSON object, as a kill leaves it.

    `error` is what json says of it, a json.JSONDecodeError if it is about the text.
    """
    text = line.decode("utf-8", "replace")
    position, reason = getattr(error, "pos", None), getattr(error, "msg", "")
    if position is None or not text.startswith("{"):
        return False
    in_text = reason.startswith(("Unterminated string", "Invalid \\uXXXX"))
    in_word = any(word.startswith(text[position:]) for word in ("true", "false", "null"))
    return in_text or in_word


def lack(facts: Json) -> str:
    """Return what is wrong with the first line of a record that has one, "" for nothing."""
    if facts and "format" not in facts:
        return "its first line is missing"
    for key in _TEXTS if facts else ():
        if not isinstance(facts.get(key, None if key in _IDENTITY else ""), str):
            return f"its {key} is no text"
    return ""


def is_affordable(fd: int) -> bool:
    """Tell whether there are descriptors left for what a DEL opens beside `fd`."""
    try:
        os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, fd + _SPARE))
    except OSError:
        return False
    return True


def is_empty(path: str) -> bool:
    """Tell whether a file is there and has nothing in it."""
    try:
        return os.stat(path, follow_symlinks=False).st_size == 0
    except FileNotFoundError:
        return False


def is_at(fd: int, path: str) -> bool:
    """Tell whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
