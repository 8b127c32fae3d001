"""The last known cluster on the disk: by it the agent works while the API server is away."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from agent import files
from agent.snapshot import from_json, to_json

if TYPE_CHECKING:
    from pathlib import Path

    from agent.logs import Log
    from agent.snapshot import Snapshot

FORMAT = 1  # of the file; a newer agent may read older ones, never the other way round
FILE = "cluster.json"


class Remembered:
    """The file in the agent's state directory."""

    def __init__(self, directory: Path, log: Log) -> None:
        self._path = directory / FILE
        self._log = log

    def load(self, node: str) -> Snapshot | None:
        """Return the cluster that was saved by the node called `node`; None where there is none.

        A file of another format or node, or a damaged one, counts as none: the API server knows
        better, and the next save replaces the file.
        """
        try:
            data = files.read(self._path)
            if data is None:
                return None
            found = json.loads(data)
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']} is not {FORMAT}")
            snapshot = from_json(found)
            if snapshot.cluster.own.name != node:
                raise ValueError(f"it is of node '{snapshot.cluster.own.name}'")
        except (OSError, KeyError, TypeError, ValueError) as error:
            self._log.warning(
                "the remembered cluster is not used", path=str(self._path), reason=str(error)
            )
            return None
        return snapshot

    def save(self, snapshot: Snapshot) -> bool:
        """Write the cluster; return False if it is the same as before. Raises OSError."""
        text = json.dumps({"format": FORMAT, **to_json(snapshot)}, indent=1)
        return files.replace(self._path, text.encode() + b"\n", 0o600)
