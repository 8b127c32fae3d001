"""Programs of the cluster that go on: started, ended, killed, and their logs."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.waits import wait_until

STOP_SECONDS = 30.0  # a program that takes longer to end is killed
RESTART_SECONDS = 1.0  # as a service manager waits


class Daemon:
    """A program of the cluster. `log` gets all that its runs print.

    One that is kept is started again after it has ended by itself, as systemd does with a kubelet,
    and a kubelet with kube-proxy and the control plane; `ended` counts that.
    """

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        environ: Mapping[str, str],
        *,
        is_kept: bool = False,
    ) -> None:
        """Start it by a command line, which may be nsenter's for the namespaces of a node."""
        self._words, self._environ, self.log = list(words), dict(environ), log
        self._is_kept, self.ended = is_kept, 0
        self._lock, self._is_let_go = threading.Lock(), threading.Event()
        self.start()

    def start(self) -> None:
        """Start it, as it was started before."""
        self._is_let_go.clear()
        self._spawn()

    def _spawn(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environ,
            )
        if self._is_kept:
            threading.Thread(target=self._keep, args=(self._process,), daemon=True).start()

    def _keep(self, process: subprocess.Popen[bytes]) -> None:
        """Start it again when a process has ended that nobody here has ended."""
        status = process.wait()
        if self._is_let_go.wait(RESTART_SECONDS):
            return
        with self._lock:
            if not self._is_let_go.is_set() and self._process is process:
                self.ended += 1
                with self.log.open("a") as output:
                    output.write(f"--- ended with {status} by itself; started again ---\n")
                self._spawn()

    def _let_go(self) -> None:
        """Have it not started again by itself."""
        with self._lock:
            self._is_let_go.set()

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
        """End it at once, as a crash does; its children go on."""
        self._let_go()
        self.signal(signal.SIGKILL)
        self._process.wait(STOP_SECONDS)

    def stop(self) -> None:
        """End it as a service manager does."""
        self._let_go()
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
