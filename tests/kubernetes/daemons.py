"""Programs of the cluster that go on: started, ended, killed, and their logs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.waits import wait_until

STOP_SECONDS = 30.0  # a program that takes longer to end is killed


class Daemon:
    """A program of the cluster. `log` gets all that its runs print."""

    def __init__(self, words: Sequence[str], log: Path, environ: Mapping[str, str]) -> None:
        """Start it by a command line, which may be nsenter's for the namespaces of a node."""
        self._words, self._environ, self.log = list(words), dict(environ), log
        self.start()

    def start(self) -> None:
        """Start it, as it was started before."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environ,
            )

    @property
    def pid(self) -> int:
        """The process that does the work: nsenter stays in front of it."""
        pid = self._process.pid
        if "nsenter" in self._words:
            wait_until(lambda: _child(pid) or self._process.poll() is not None, "nsenter has ended")
            return _child(pid)
        return pid

    def is_running(self) -> bool:
        """Tell whether it has not ended."""
        return self._process.poll() is None

    def said(self, text: str) -> bool:
        """Tell whether it has printed this."""
        return self.log.exists() and text in self.log.read_text(errors="replace")

    def tail(self, lines: int = 30) -> str:
        """Return the last lines that it has printed."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.is_running() and (pid := self.pid):
            os.kill(pid, number)

    def kill(self) -> None:
        """End it at once, as a crash does; what it has started goes on."""
        self.signal(signal.SIGKILL)
        self._process.wait(STOP_SECONDS)

    def stop(self) -> None:
        """End it as a service manager does."""
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self) -> None:
        """End it and start it again."""
        self.stop()
        self.start()


def _child(pid: int) -> int:
    """Return the first child of a process, 0 where there is none."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(children[0]) if children else 0
