"""The engine on the host: started where none is, replaced where one of another build serves.

Where systemd has the socket, the engine is systemd's: the agent starts none. One of another build,
if it runs a program of the agent's directory, is told to end. The next request, or the agent's
question, then has systemd start the build that is installed.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent import engine_choice
from cni_common.node.host import STATE_DIR
from cni_common.serve.cli import ENGINE_SOCKET
from cni_common.serve.engine import lock_owner, owner_of
from cni_common.serve.status import greeting, supervisor_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.logs import Log

_HELLO_SECONDS = 2.0  # as long as a launcher waits
_START_SECONDS = 20.0  # importing all plugins takes a second, on a busy node some
_LOG = f"{STATE_DIR}/engine.log"  # on the host
_LOG_BYTES_MAX = 1 << 20
_POLL_SECONDS = 0.05
_RESTART = "systemctl restart pycni-engine.service"
_FROM_SOURCES = (
    "import sys; sys.path.insert(0, sys.argv.pop(1));"
    "from agent.on_host import main; sys.exit(main(sys.argv[1:]))"
)


class Engine:
    """The engine of the host, by its socket and its lock."""

    def __init__(
        self,
        bin_dir: Path,
        *,
        log: Log,
        wake: Callable[[str], None],
        process: int = 1,
        path: str = ENGINE_SOCKET,
    ) -> None:
        """The engine gets the mount namespace of `process`; `path` is the socket in ours."""
        self._command = (str(bin_dir / "pycni"), "engine")
        self._store = bin_dir / ".pycni"
        self._log = log
        self._wake = wake
        self._process = process
        self._path = path
        self._lock = f"{os.path.dirname(path)}/engine.lock"  # as cni_common/serve/engine.py has it
        self._expected = ""  # the build of an engine that was started, until it serves
        self._deadline = 0.0  # by which that one serves
        self._watched = 0  # process id of the engine whose end wakes the loop

    def build(self) -> str:
        """Return the build of the engine that answers, "" where none does. Takes 2 s at most."""
        return greeting(self._path)[0]

    def ensure(self, build: str) -> tuple[str, ...]:
        """Have an engine of `build` serve; return what is wrong, in sentences.

        One that the agent starts takes the socket's path over before the old one is told to end, so
        no call fails. Where systemd has the socket, systemd starts it. One that was started is
        given its time.
        """
        if self._expected == build and time.monotonic() < self._deadline:
            return ()
        self._expected = ""
        if os.getpid() == self._process:
            return (
                "process 1 is the agent itself, so the engine would run in its container: give the"
                " pod hostPID, or switch the engine off by --engine false",
            )
        self._trim_log()
        serving, worker = greeting(self._path)
        owner = owner_of(self._path)
        if owner < 0 and (serving or self._is_served()):
            return self._of_systemd(build, serving, worker)
        if serving != build:
            reason = f"of build {serving}" if serving else "none"
            self._log.info("starting the engine", build=build, before=reason)
            return self._start(build)
        self._watch(owner)
        return ()

    def await_start(self) -> tuple[str, ...]:
        """Wait until the engine serves that `ensure` has started; return what is wrong."""
        if not self._expected:
            return ()
        while True:
            serving, worker = greeting(self._path)
            if serving == self._expected:
                break
            if time.monotonic() > self._deadline:
                return (self._why_not(serving),)
            time.sleep(_POLL_SECONDS)
        self._expected = ""
        owner = owner_of(self._path)
        self._watch(owner if owner >= 0 else supervisor_of(worker))
        return ()

    def _why_not(self, serving: str) -> str:
        if owner_of(self._path) < 0 and self._is_served():
            what = f"is of build {serving}" if serving else "does not answer"
            return f"the engine at '{self._path}' is systemd's and {what}: run '{_RESTART}'"
        return (
            f"the engine does not serve after {_START_SECONDS:.0f} s: '{_LOG}' on the host says why"
        )

    def _of_systemd(self, build: str, serving: str, worker: int) -> tuple[str, ...]:
        """Have systemd's engine be of `build`; return what is wrong.

        Without a `worker` systemd is starting an engine, or that hangs: time will tell.
        """
        supervisor = supervisor_of(worker)
        if serving == build:
            self._watch(supervisor)
            return ()
        if worker and not self._end(supervisor):
            return (
                f"systemd runs an engine of build {serving or 'unknown'}, which is not in"
                f" '{self._store}', and {build} is installed: see its unit, and run '{_RESTART}'",
            )
        if worker:
            self._log.info("told systemd's engine to end", build=build, before=serving)
        self._expected, self._deadline = build, time.monotonic() + _START_SECONDS
        return ()

    def follow(self, build: str) -> None:
        """Have the next engine of systemd be of `build`, if one of another build serves."""
        serving, worker = greeting(self._path)
        if serving != build and owner_of(self._path) < 0:
            self._end(supervisor_of(worker))

    def _end(self, pid: int) -> bool:
        """Tell an engine to end that runs a program of the directory; return whether it is one."""
        if pid <= 0:
            return False
        with suppress(OSError):
            life = os.pidfd_open(pid)
            try:
                program = os.stat(f"/proc/{pid}/exe")
                ours = engine_choice.programs(self._store.iterdir())
                if (program.st_dev, program.st_ino) in ours:
                    signal.pidfd_send_signal(life, signal.SIGTERM)
                    return True
            finally:
                os.close(life)
        return False

    def _start(self, build: str) -> tuple[str, ...]:
        """Start an engine, which imports all plugins before it serves; return why that fails."""
        words = [*_on_host(), str(self._process), _LOG, *self._command]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=_START_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return (f"'{' '.join(words)}' takes more than {_START_SECONDS:.0f} s",)
        if done.returncode:
            return (f"the engine does not start: {done.stderr.strip() or done.returncode}",)
        self._expected, self._deadline = build, time.monotonic() + _START_SECONDS
        return ()

    def _watch(self, owner: int) -> None:
        """Have the end of process `owner` wake the loop."""
        if owner <= 0 or owner == self._watched:
            return
        with suppress(ProcessLookupError):
            life = os.pidfd_open(owner)
            self._watched = owner
            threading.Thread(target=self._await_end, args=(life,), daemon=True).start()

    def _await_end(self, life: int) -> None:
        poller = select.poll()
        poller.register(life, select.POLLIN)
        poller.poll()
        os.close(life)
        # Workers of a killed engine answer until each has noticed. With an answer and no process
        # that holds the lock the engine would pass for systemd's, and no other one would be
        # started.
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._is_without_owner():
            time.sleep(_POLL_SECONDS)
        self._wake("engine")

    def _is_without_owner(self) -> bool:
        serving, worker = greeting(self._path)
        return bool(serving and owner_of(self._path) < 0 and not supervisor_of(worker))

    def stop(self) -> bool:
        """Tell the engine to end unless systemd runs it; return whether there was one."""
        owner = lock_owner(self._lock)
        if owner < 0:
            return False
        with suppress(ProcessLookupError):
            life = os.pidfd_open(owner)
            try:
                signal.pidfd_send_signal(life, signal.SIGTERM)
                select.select([life], [], [], _START_SECONDS)
            finally:
                os.close(life)
        return True

    def remove_groups(self) -> tuple[str, ...]:
        """Remove the control groups in which engines were; return what is wrong, in sentences."""
        from agent.on_host import REMOVE_GROUPS

        words = [*_on_host(), REMOVE_GROUPS, str(self._process)]
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_START_SECONDS, check=False
        )
        return (
            (done.stderr.strip() or f"{words[-2:]}: {done.returncode}",) if done.returncode else ()
        )

    def _is_served(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(_HELLO_SECONDS)
            try:
                sock.connect(self._path)
            except OSError:
                return False
            return True

    def _trim_log(self) -> None:
        """Empty the engine's log when it has grown; the engine appends, so it goes on at 0."""
        with suppress(OSError):
            path = f"{os.path.dirname(self._path)}/engine.log"
            if os.stat(path).st_size > _LOG_BYTES_MAX:
                os.truncate(path, 0)


def _on_host() -> Sequence[str]:
    """Return the command that runs agent/on_host.py, which may be frozen into this program."""
    if hasattr(sys, "_MEIPASS"):  # of PyInstaller's bootloader
        return (sys.executable, "on-host")
    from agent import on_host

    root = os.path.dirname(os.path.dirname(on_host.__file__))
    return (sys.executable, "-I", "-c", _FROM_SOURCES, root)
