"""Files of ours, and the one of an attachment record: lines of JSON, the last maybe cut short."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from typing import Any

    from cni_common.spec.wire import Json

_BYTES_MAX = 1 << 26  # a record with 10,000 host ports has a tenth of that
# What any record has, and what most have: text, all of it.
_IDENTITY = ("plugin", "network", "containerid", "ifname")
_TEXTS = (*_IDENTITY, "netns", "netns_id", "stdin", "cni_args", "cni_path")
_KINDS = {
    stat.S_IFREG: "",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFSOCK: "a socket",
}


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
        except CNIError:
            # A kill cuts the last line short; another line only if a call went on behind it.
            goes_on = number < len(lines) or (number == len(lines) and last)
            if number <= len(lines) and not (goes_on and _is_cut_short(line)):
                damage = damage or f"line {number} cannot be read"
            continue
        facts, damage = (dict(noted), "") if "format" in noted else ({**facts, **noted}, damage)
    return facts, damage


def _is_cut_short(line: bytes) -> bool:
    """Tell whether a line is the beginning of a JSON object, as a kill leaves it."""
    text = line.decode("utf-8", "replace")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos :]
        in_text = error.msg.startswith(("Unterminated string", "Invalid \\uXXXX"))
        in_word = any(word.startswith(rest) for word in ("true", "false", "null"))
        return text.startswith("{") and (in_text or in_word)
    except (ValueError, RecursionError):
        return False
    return False


def lack(facts: Json) -> str:
    """Return what is wrong with the first line of a record that has one, "" for nothing."""
    if facts and "format" not in facts:
        return "its first line is missing"
    for key in _TEXTS if facts else ():
        if not isinstance(facts.get(key, None if key in _IDENTITY else ""), str):
            return f"its {key} is no text"
    return ""
