"""Makes what the plugins have noted older, as if time had passed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


def age(path: Path, seconds: float) -> None:
    """Make a lease, a record or what `pycni reclaim` has noted that much older.

    Raises FileNotFoundError.
    """
    if path.name == "reclaim.json":
        first = json.loads(path.read_text())
        path.write_text(json.dumps({key: since - seconds for key, since in first.items()}))
        return
    if path.parent.name == "attachments":
        _predate(path, seconds)
    os.utime(path, (time.time() - seconds,) * 2)


def _predate(record: Path, seconds: float) -> None:
    """Have a record say that its namespace was found gone that much earlier, if it says so."""
    since, text = None, record.read_text()
    for line in text.splitlines():
        try:
            since = json.loads(line).get("gone_since", since)
        except ValueError:
            continue  # torn by a kill
    if since:
        fd = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        with os.fdopen(fd, "wb", buffering=0) as file:
            torn = "\n" if not text.endswith("\n") else ""
            file.write(f'{torn}{{"gone_since": {since - seconds}}}\n'.encode())
