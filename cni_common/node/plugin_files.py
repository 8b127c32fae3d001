"""Executables of plugins: found in CNI_PATH, recognised as ours, opened where root alone writes."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import is_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

_LAUNCHER_BYTES_MAX = 1 << 18  # a launcher has 50 KiB; a program that is larger is none
_KNOWN_MAX = 64  # files
_RACY_NS = 2 * 10**9  # more than two ticks of any file system: a later change has another time
_LINKS_MAX = 40  # on one path, as the kernel has it
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# Answers of launchers, by path and build, with the state of the file then: an engine serves
# thousands of calls by the same few files.
_known: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {}


def find_plugin(type: str, path: Sequence[str]) -> str:
    """Return the first regular file called `type` in the directories `path`.

    Raises CNIError 7 for a name that is none, 50 when there is no such file.
    """
    if not type:
        raise CNIError(Code.INVALID_CONFIG, 'no plugin name provided: "type" is missing or empty')
    if "/" in type or not is_whole(type) or type in (".", ".."):
        raise CNIError(Code.INVALID_CONFIG, f"invalid plugin name: {type!r}")
    for directory in path:
        candidate = os.path.join(directory, type)
        if os.path.isfile(candidate):
            return candidate
    raise CNIError(
        Code.PLUGIN_NOT_AVAILABLE,
        f'failed to find plugin "{type}" in path [{" ".join(path)}]; install it there or'
        f" correct CNI_PATH{_near_miss(type, path)}",
    )


def _near_miss(type: str, path: Sequence[str]) -> str:
    """Return the question whether a plugin of a similar name was meant, "" if there is none."""
    from difflib import get_close_matches

    names: set[str] = set()
    for directory in path:
        try:
            names.update(os.listdir(directory))
        except OSError:
            continue
    near = get_close_matches(type, names, 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def own_build() -> str:
    """Return the build of the frozen program that runs this, "" where it runs from sources."""
    # PyInstaller's bootloader sets _MEIPASS.
    frozen = hasattr(sys, "_MEIPASS")
    return os.path.basename(os.path.dirname(sys.executable)) if frozen else ""


def is_removed() -> bool:
    """Tell whether the bundle that runs this is there no more: replaced by another, or removed."""
    return bool(own_build()) and not os.path.exists(sys.executable)


def is_of_bundle(error: Exception) -> bool:
    """Tell whether an error, or one of a group, is about a module or a file of this bundle."""
    if isinstance(error, ExceptionGroup):
        return any(map(is_of_bundle, error.exceptions))
    if isinstance(error, ImportError):
        return True
    name = error.filename if isinstance(error, OSError) else None
    directory = os.path.dirname(sys.executable)
    return bool(own_build()) and isinstance(name, str) and name.startswith(f"{directory}/")


def program_of_bundle(name: str) -> str:
    """Return the path of another program beside the frozen one, "" where this runs from sources."""
    return f"{os.path.dirname(sys.executable)}/{name}" if own_build() else ""


def type_of(path: str, build: str) -> str:
    """Return the type of the plugin whose launcher of `build` the file is, "" if it is another.

    The launcher says it (launcher/launcher.c), so that a link or copy may have any name. A launcher
    without a type is the plugin whose name its file has. Raises OSError.
    """
    state, type = _known.get((path, build), ((), ""))
    if state and state == _state_of(os.stat(path)):
        return type
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # the path may be a FIFO
    try:
        status = os.fstat(fd)
        data = os.read(fd, status.st_size) if status.st_size <= _LAUNCHER_BYTES_MAX else b""
    finally:
        os.close(fd)
    _, mark, rest = data.partition(f"pycni launcher {build} ".encode())
    if not mark:
        return ""
    type = rest.partition(b"\0")[0].decode("ascii", "replace")
    if not type:
        return os.path.basename(os.path.realpath(path))
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _RACY_NS:
        if len(_known) >= _KNOWN_MAX:
            _known.clear()
        _known[path, build] = _state_of(status), type
    return type


def _state_of(status: os.stat_result) -> tuple[int, ...]:
    """Return the state of a file, which any change of its content changes."""
    place = status.st_dev, status.st_ino
    return (*place, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def open_guarded(path: str) -> int:
    """Return a descriptor by which to execute the file `path`, which root alone can have put there.

    Each directory, each link and the file itself belong to root, and no other user can write there;
    in a directory with the sticky bit none can replace what is root's. Each is looked at by
    a descriptor, from the root directory on, so that none can be exchanged between look and
    execution. Raises PermissionError that names the first one that others can change, OSError.
    """
    if not path.startswith("/"):
        raise PermissionError(errno.EPERM, "it is no absolute path", path)
    opened = [os.open("/", _LOOK)]
    try:
        place = _walk(path, opened)
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise PermissionError(errno.EPERM, "it is no regular file", path)
        opened.remove(place)
        return place
    finally:
        for fd in opened:
            os.close(fd)


def _walk(path: str, opened: list[int]) -> int:
    """Return the descriptor of `path`, one of those that are added to `opened`, the root's."""
    place, links = opened[0], 0
    ahead = path.split("/")[::-1]  # the next name is the last
    while ahead:
        name = ahead.pop()
        if name in ("", "."):
            continue
        found = os.open(name, _LOOK, dir_fd=place)
        opened.append(found)
        status = os.fstat(found)
        _refuse_foreign(found, status)
        if not stat.S_ISLNK(status.st_mode):
            place = found
            continue
        links += 1
        if links > _LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink("", dir_fd=found)
        ahead += target.split("/")[::-1]
        if target.startswith("/"):
            place = opened[0]
    return place


def _refuse_foreign(fd: int, status: os.stat_result) -> None:
    """Raise PermissionError when others than root can change the file or directory `fd`."""
    mode = status.st_mode
    # The mode of a link says nothing, and a sticky directory guards the entries of root.
    is_open = mode & 0o022 and not stat.S_ISLNK(mode) and not mode & stat.S_ISVTX
    if status.st_uid or is_open:
        place = os.readlink(f"/proc/self/fd/{fd}")
        raise PermissionError(errno.EPERM, "others than root can change it", place)
