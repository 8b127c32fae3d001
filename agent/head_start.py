"""Plugins and engine before all else: the agent imports the client of the API meanwhile.

The engine is a process of its own, which imports for as long as the agent does.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from agent import install, owners

if TYPE_CHECKING:
    from pathlib import Path

    from agent.engine import Engine


class HeadStart:
    """One installation and one start of the engine, in a thread that begins at once.

    The loop does both again after `join`. It finds nothing to do, or says why there is.
    """

    def __init__(self, dist: Path, bin_dir: Path, engine: Engine | None) -> None:
        """Install `dist` into `bin_dir`; no other caller may use `engine` before `join`."""
        self._dist, self._bin_dir, self._engine = dist, bin_dir, engine
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="head start", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError, install.InstallError):
            build = install.install(self._dist, self._bin_dir, self._told.add, owner=owners.AGENT)
            if self._engine:
                self._engine.ensure(build)

    def join(self) -> set[str]:
        """Wait for its end; return what the installation has told, once."""
        self._thread.join()
        told, self._told = self._told, set()
        return told
