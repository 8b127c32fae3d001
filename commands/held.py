"""Locks that calls of plugins hold at this moment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def records(state_dir: str) -> str:
    """Return the directory of the attachment records."""
    return os.path.join(state_dir, "attachments")


def files(roots: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield device and inode, as `locks` has them, and path of the files that calls lock."""
    for root in roots:
        for directory, _, names in os.walk(root):
            for name in names:
                path = os.path.join(directory, name)
                try:
                    found = os.stat(path)
                except OSError:
                    continue
                device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
                yield f"{device}:{found.st_ino}", path


def locks() -> Iterator[tuple[str, int]]:
    """Yield device and inode, and the process, of each lock that is held."""
    try:
        with open("/proc/locks", encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for words in map(str.split, lines):
        if "->" not in words and len(words) >= 6 and words[4].isdigit():
            yield words[5], int(words[4])


def attachments(state_dir: str) -> int:
    """Return of how many attachments a call holds a record."""
    numbers = {number for number, _ in locks()}
    names = [
        os.path.basename(path) for number, path in files([records(state_dir)]) if number in numbers
    ]
    return len({tuple(name.rsplit("-", 2)[1:]) for name in names})  # behind the plugin
