"""Completion for shells, and the manual page of `pycni`, as `make install` puts them.

A file of the same name that does not say that it is ours stays.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Say = Callable[[str], object]

# Below docs/ of a checkout, and below a directory such as /usr/share.
PLACES: Mapping[str, str] = {
    "completion/pycni": "bash-completion/completions/pycni",
    "completion/_pycni": "zsh/site-functions/_pycni",
    "completion/pycni.fish": "fish/vendor_completions.d/pycni.fish",
    "man/pycni.1": "man/man1/pycni.1",
}
_MARK = b"Written by `python -m deploy.completion`"
_HEAD = 500  # bytes, among which the mark is
_NEW = ".pycni-new"


def put(docs: Path, share: Path, say: Say) -> None:
    """Install the files of `docs` below `share`; nothing from a `docs` that is not there.

    Raises OSError.
    """
    for name, place in PLACES.items():
        source, target = docs / name, share / place
        if not source.is_file():
            continue
        if os.path.lexists(target) and not _is_ours(target):
            say(f"'{target}' is another's and stays")
            continue
        _make_directory(target.parent)
        new = target.with_name(f"{target.name}{_NEW}")
        shutil.copyfile(source, new)
        new.chmod(0o644)
        new.replace(target)


def take_away(share: Path) -> None:
    """Remove what `put` has put there, and directories that have become empty. Raises OSError."""
    for place in PLACES.values():
        target = share / place
        if not _is_ours(target):
            continue
        target.unlink()
        for directory in (target.parent, target.parent.parent):
            with suppress(OSError):  # something else is in it
                directory.rmdir()


def _is_ours(path: Path) -> bool:
    try:
        return not path.is_symlink() and _MARK in path.read_bytes()[:_HEAD]
    except OSError:
        return False


def _make_directory(path: Path) -> None:
    """Make a directory, and those above it, readable by all under any umask."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir()
        one.chmod(0o755)
