"""The agent's log: one JSON object on a line of stderr."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from cni_common.serve.stdio import say

LEVELS = ("debug", "info", "warning", "error")
_STDERR = 2


class Log:
    """Writes what is at least of level `least`."""

    def __init__(self, least: str = "info") -> None:
        """`least` is one of LEVELS."""
        self._least = LEVELS.index(least)

    def debug(self, message: str, **fields: object) -> None:
        """Log what only a developer wants to know."""
        self._write("debug", message, fields)

    def info(self, message: str, **fields: object) -> None:
        """Log a change that the agent has made or seen."""
        self._write("info", message, fields)

    def warning(self, message: str, **fields: object) -> None:
        """Log what is wrong and may pass by itself."""
        self._write("warning", message, fields)

    def error(self, message: str, **fields: object) -> None:
        """Log what an operator has to mend."""
        self._write("error", message, fields)

    def _write(self, level: str, message: str, fields: dict[str, object]) -> None:
        if LEVELS.index(level) < self._least:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": now, "level": level, "message": message, **fields}
        say(_STDERR, json.dumps(line, default=str))
