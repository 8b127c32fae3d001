"""The engine on demand: where no engine serves, a call leaves one behind once its answer is out.

`make install` writes the choice into a symbolic link beside the bundles, `.pycni/engine`. The
launcher reads it where it finds no engine, and tells it to the frozen program by a variable. The
engine ends by itself: after a time without a request, when its build was replaced, and when no
other process is in its network namespace.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from cni_common.node.host import STATE_DIR
from cni_common.node.journal import make_private_directory
from cni_common.node.plugin_files import is_removed
from cni_common.serve.surroundings import Company, are_of_a_node

if TYPE_CHECKING:
    from collections.abc import Callable

OPTION = "--on-demand"  # of `pycni engine`; agent/engine_choice.py looks for it in command lines
ON_DEMAND, NONE = "on-demand", "none"  # choices; agent/engine_choice.py has all
IDLE_SECONDS = 600.0
_IDLE_MAX = 1e6
# Soft limit of descriptors, as systemd gives its services: its own is a billion, and a delegate of
# others may close each of them.
_FILES = 1024
_PAUSE_MAX = 60.0  # seconds
_LOCK = "engine.on-demand"  # in STATE_DIR; only a call with its flock(2) may leave an engine
_LOCK_FD = 3  # by which an engine gets the lock of the call that leaves it behind
_LOG = "engine.log"  # in STATE_DIR; the agent's engine has it too
_LOG_BYTES_MAX = 1 << 20
_ENVIRON = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"}
_SIGNALS = (1, 2, 3, 10, 12, 13, 14, 15, 17, 25)  # that callers ignore, or that Python does


def idle_seconds(choice: str) -> float:
    """Return after which time without a request an engine ends; 0.0: the choice is another one.

    The choice is "on-demand", or "on-demand:SECONDS".
    """
    word, _, number = choice.partition(":")
    if word != ON_DEMAND:
        return 0.0
    with suppress(ValueError):
        seconds = float(number or IDLE_SECONDS)
        return seconds if 0 < seconds < _IDLE_MAX else 0.0
    return 0.0


def choice() -> str:
    """Return the choice of the installation that this program belongs to, "none" without one."""
    if not hasattr(sys, "_MEIPASS"):  # of PyInstaller's bootloader
        return NONE
    with suppress(OSError):
        return os.readlink(f"{os.path.dirname(_bundle())}/engine")
    return NONE


def _bundle() -> str:
    return os.path.dirname(sys.executable)


# --- the call that leaves an engine behind ---


def leave(choice: str, bin_dir: str, state_dir: str = STATE_DIR) -> None:
    """Start an engine of `bin_dir` that outlives this process, if `choice` is so and none runs.

    For the end of a process: it changes the working directory and the limits. A failure costs
    nothing but the engine.
    """
    if not idle_seconds(choice) or os.geteuid():
        return
    with suppress(OSError):
        if not are_of_a_node():
            return
        lock = take_lock(state_dir)
        if lock >= 0:
            os.chdir("/")  # before the spawn: the engine shall not hold the runtime's directory
            _be_as_the_first()
            _spawn(f"{bin_dir}/pycni", lock)


def take_lock(state_dir: str) -> int:
    """Return a descriptor that holds the lock, -1 when another process does. Raises OSError."""
    make_private_directory(state_dir)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(f"{state_dir}/{_LOCK}", flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return -1
    return fd


def _be_as_the_first() -> None:
    """Take processors, priority and limits from process 1, for the engine. Raises OSError.

    Those of the caller (taskset, nice, ulimit) are for its own call, and the engine serves others.
    """
    import resource

    os.sched_setaffinity(0, os.sched_getaffinity(1))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    for number in {n for name, n in vars(resource).items() if name.startswith("RLIMIT_")}:
        soft, hard = resource.prlimit(1, number)
        if number == resource.RLIMIT_NOFILE:
            soft = min(soft, _FILES)
        try:
            resource.setrlimit(number, (soft, hard))
        except ValueError:  # the hard limit is above what it may have
            _, own = resource.getrlimit(number)
            if own != resource.RLIM_INFINITY and not 0 <= soft <= own:
                raise PermissionError(errno.EPERM, "a limit of the caller stays") from None
            resource.setrlimit(number, (soft, own))


def _spawn(program: str, lock: int) -> None:
    """Start the engine in a session of its own, with no file but the lock. Raises OSError."""
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    inherited = [int(name) for name in os.listdir("/proc/self/fd")]
    os.posix_spawn(
        program,
        [program, "engine", OPTION],
        _ENVIRON,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, lock, _LOCK_FD),
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in inherited if fd > _LOCK_FD),
            *null,
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=_SIGNALS,
    )


# --- the engine that was left behind ---


def hold_lock(state_dir: str = STATE_DIR) -> int:
    """Return the lock that the call has handed over, or take it; -1 when another process has it.

    Raises OSError.
    """
    with suppress(OSError):
        if os.path.samestat(os.fstat(_LOCK_FD), os.stat(f"{state_dir}/{_LOCK}")):
            fcntl.fcntl(_LOCK_FD, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
            return _LOCK_FD
    return take_lock(state_dir)


def detach() -> list[str]:
    """Detach this process from its caller; return what was not possible."""
    from cni_common.kernel.cgroups import leave_groups

    with suppress(PermissionError):  # it leads a session already
        os.setsid()
    os.chdir("/")
    os.umask(0o022)
    try:
        return leave_groups()
    except OSError as error:
        return [f"stays in the caller's control groups: {error}"]


def log(text: str, state_dir: str = STATE_DIR) -> None:
    """Add a line to the log, which is emptied when it has grown."""
    path = f"{state_dir}/{_LOG}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    with suppress(OSError):
        fd = os.open(path, flags, 0o600)
        try:
            if os.fstat(fd).st_size > _LOG_BYTES_MAX:
                os.ftruncate(fd, 0)
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
            os.write(fd, f"{stamp} [{os.getpid()}] {text}\n".encode("utf-8", "replace"))
        finally:
            os.close(fd)


class Stay:
    """Whether an engine that a call has left behind is still of use."""

    def __init__(self, idle: float, served: Callable[[], int]) -> None:
        """`idle`: seconds without a request after which it ends; `served` counts requests."""
        self._idle = idle
        self._served = served
        self._last, self._since = served(), time.monotonic()
        self._company = Company()
        self._company.is_there()
        self._chosen = choice()

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        return 0.0 if self.fd < 0 else min(max(self._idle / 10, 0.05), _PAUSE_MAX)

    @property
    def fd(self) -> int:
        """A file that can be read when it is time for a look, -1 for none."""
        return self._company.fd

    def why_not(self) -> str:
        """Look; return why the engine is to end, "" when it is to stay."""
        served, now = self._served(), time.monotonic()
        if served != self._last:
            self._last, self._since = served, now
        if not self._company.is_there():
            return "no other process is in its network namespace"
        if now - self._since >= self._idle:
            return f"there was no request for {self._idle:g} s"
        return self._replacement()

    def _replacement(self) -> str:
        if not hasattr(sys, "_MEIPASS"):
            return ""
        bundle = _bundle()
        if os.path.exists(f"{bundle}/superseded") or is_removed():
            return f"build {os.path.basename(bundle)} was replaced or removed"
        chosen = choice()
        return "" if chosen == self._chosen else f"the choice is '{chosen}' now"
