"""First sightings of objects without a record: `pycni reclaim` removes only those seen twice."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from cni_common.node.journal import make_directory, open_file
from cni_common.node.liveness import GRACE_SECONDS
from cni_common.spec.errors import CNIError

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME, _MODE = "reclaim.json", 0o600
_BYTES_MAX = 1 << 24


class FirstSeen:
    """The first sightings of this boot, in a file in the state directory."""

    def __init__(self, state_dir: str) -> None:
        """A file that cannot be read counts as empty: all is then seen for the first time."""
        self._path = f"{state_dir}/{_NAME}"
        self._now = time.clock_gettime(time.CLOCK_BOOTTIME)  # cannot be set
        self._first: dict[str, float] = {}
        try:
            with os.fdopen(open_file(self._path, os.O_RDONLY), "rb") as file:
                found = json.loads(file.read(_BYTES_MAX))
        except (CNIError, OSError, ValueError):
            return
        if isinstance(found, dict):
            pairs = found.items()
            self._first = {k: v for k, v in pairs if isinstance(v, (int, float)) and v <= self._now}

    def is_second(self, key: str) -> bool:
        """Tell whether `key` was seen a grace time ago or earlier, and ever since."""
        return self._now - self._first.get(key, self._now) >= GRACE_SECONDS

    def remember(self, keys: Iterable[str]) -> None:
        """Note that `keys` have been seen now, and forget all others. Raises OSError."""
        first = {key: self._first.get(key, self._now) for key in keys}
        if first == self._first:
            return
        new = f"{self._path}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        make_directory(os.path.dirname(self._path), 0o700)
        with suppress(FileNotFoundError):
            os.unlink(new)
        with open(os.open(new, flags, _MODE), "w", encoding="ascii") as file:
            json.dump(first, file)
        os.replace(new, self._path)
        self._first = first
