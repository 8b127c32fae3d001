"""The engine: a resident supervisor and its workers, forked with all modules imported.

The engine is optional. If it is absent, full, hung or of another build, a launcher starts the
frozen program instead.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import select
import signal
import socket
import struct
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.journal import make_private_directory
from cni_common.serve.on_demand import Stay
from cni_common.serve.worker import BACKLOG, Turn, Worker
from cni_common.spec import schema
from cni_common.spec.errors import CNIError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from cni_common.node.host import Loader
    from cni_common.serve.worker import Settings

    Log = Callable[[str], object]

# A number for each worker's place: a file without a name, as /proc shows it, or in memory.
NAMELESS, TALLY = r"/#\d+ \(deleted\)$", "pycni-served"
_COUNT = struct.Struct("<Q")
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2), 64 bits: type, whence, start, …
_INODE_BYTES_MAX = 20  # in the text of engine.lock: 64 bits
_GIVEN_SOCKET = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
_BURST, _BURST_SECONDS = 10, 10.0  # workers replaced at once, within so many seconds
# The pause beyond that, and after a failed fork; at the end, until launchers are turned away.
_RETRY_SECONDS = 1.0
_ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Modules that functions import on demand: imported before the fork, so that workers share them.
_LAZY = (
    *("cni_common.kernel.iptables", "cni_common.kernel.nft_messages"),
    "cni_common.node.masquerade_iptables",
    *("difflib", "hashlib", "re", "subprocess", "traceback"),
)


def serve(
    settings: Settings, path: str, *, load: Loader, load_all: Callable[[], object], log: Log
) -> None:
    """Serve requests until SIGTERM, SIGINT or SIGHUP, on systemd's socket or on one at `path`.

    Another engine at that path, also one whose path systemd has taken, is told to end; no request
    is lost in between. An engine on demand ends instead, and also once it is of no use any more.
    Raises OSError if the socket cannot be made, FileExistsError if another program serves it.
    """
    load_all()
    _import_the_rest(with_jsonschema=not settings.on_demand)
    given = _given_socket()
    if given:
        # Requests that wait at the end are for the next engine.
        worker = Worker(settings, load, given, leave_backlog=True)
        _Supervisor(worker, settings, log).run(partial(_end_displaced, given.getsockname()))
        return
    place = _Place(path, yields=settings.on_demand)
    worker = Worker(settings, load, place.listener)
    _Supervisor(worker, settings, log).run(place.take, place.leave)


class _Tally:
    """The requests served, in a file without a name, where `pycni engine --status` looks for them.

    The file is beside the records, so that a worker has no file in memory but those of its request.
    """

    def __init__(self, directory: str, places: int) -> None:
        self._turns = (places + 1) // 2
        try:
            make_private_directory(directory)
            self._fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(self._fd, 0, places * _COUNT.size)  # a full disk later is no matter
        except OSError:
            self._fd = os.memfd_create(TALLY)

    def teller(self, place: int) -> Callable[[int], object]:
        """Return what adds the requests that the next worker at `place` has served."""
        offset = place * _COUNT.size
        before = total(os.pread(self._fd, _COUNT.size, offset))

        def tell(served: int) -> None:
            with suppress(OSError):  # no reason for a worker to end, and another to begin
                os.pwrite(self._fd, _COUNT.pack(before + served), offset)

        return tell

    def turn(self, place: int) -> Turn:
        """Return what the worker at `place` shares with another one."""
        return Turn(self._fd, place % self._turns)

    def total(self) -> int:
        """Return the requests of all workers."""
        return total(os.pread(self._fd, os.fstat(self._fd).st_size, 0))


def total(tally: bytes) -> int:
    """Return the requests that the content of a tally stands for."""
    whole = len(tally) - len(tally) % _COUNT.size
    return sum(count for (count,) in _COUNT.iter_unpack(tally[:whole]))


class _Supervisor:
    """Forks the workers, and replaces each one that ends."""

    def __init__(self, worker: Worker, settings: Settings, log: Log) -> None:
        self._worker = worker  # copied into each of `count` processes by fork
        self._count = settings.workers
        self._log = log
        self._tally = _Tally(settings.state_dir, settings.workers)
        self._stay = Stay(settings.idle_seconds, self._tally.total) if settings.on_demand else None
        self._workers: dict[int, int] = {}  # process ids, and the place of each in the tally
        self._starts: list[float] = []  # when the last workers were started
        self._lifeline, self._cut = os.pipe2(os.O_CLOEXEC)  # workers end when `_cut` is closed
        self._signals, self._wakeup = socket.socketpair()

    def run(
        self,
        on_ready: Callable[[], object] = lambda: None,
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        """Serve until a signal, call `on_end`, and wait for the workers to finish.

        `on_ready` is called once the first workers are forked.
        """
        self._wake_on_signals()
        gc.collect()
        gc.freeze()  # objects made so far are never garbage, and stay shared with the workers
        self._fill()
        on_ready()
        self._log(f"engine: {len(self._workers)} workers wait for requests")
        while self._workers or not self._is_ending:
            if self._told_to_end():
                on_end()
                os.close(self._cut)
                self._cut = -1
            self._reap()
            if not self._is_ending:
                self._fill()
        self._log("engine: ended")

    @property
    def _is_ending(self) -> bool:
        return self._cut < 0

    def _wake_on_signals(self) -> None:
        """Let signals wake the supervisor. Handlers, not SIG_IGN: delegates would inherit that."""
        self._signals.settimeout(0)
        self._wakeup.settimeout(0)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in (*_ENDINGS, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)

    def _told_to_end(self) -> bool:
        """Wait for a signal, briefly unless all workers run; return whether to end."""
        numbers = self._await_signals()
        if self._is_ending:
            if not numbers:  # a worker is still busy, and no process accepts on the socket
                self._turn_away()
            return False
        if reason := self._stay.why_not() if self._stay else "":
            self._log(f"engine: {reason}")
            return True
        return any(number in numbers for number in _ENDINGS)

    def _turn_away(self) -> None:
        if count := self._worker.turn_away():
            self._log(f"engine: ends, but a worker is busy: requests turned away: {count}")

    def _await_signals(self) -> bytes:
        """Return the signals that have come, b"" when it is time to look at something else."""
        poller = select.poll()
        poller.register(self._signals, select.POLLIN)
        is_full = not self._is_ending and len(self._workers) == self._count
        pauses = [] if is_full else [_RETRY_SECONDS]
        if self._stay and not self._is_ending:
            pauses.append(self._stay.pause)
            if self._stay.fd >= 0:
                poller.register(self._stay.fd, select.POLLIN)
        poller.poll(min(pauses) * 1000 if pauses else None)
        try:
            return self._signals.recv(4096)
        except BlockingIOError:
            return b""

    def _fill(self) -> None:
        """Start missing workers, at most _BURST replacements in _BURST_SECONDS."""
        now = time.monotonic()
        self._starts = [at for at in self._starts if now - at < _BURST_SECONDS]
        while len(self._workers) < self._count:
            if len(self._starts) >= self._count + _BURST:
                return
            self._starts.append(now)
            try:
                self._start()
            except OSError as error:
                self._log(f"engine: cannot start a worker: {error.strerror}")
                return

    def _start(self) -> None:
        place = min(set(range(self._count)) - set(self._workers.values()))
        pid = os.fork()
        if pid == 0:
            self._become_worker(place)
        self._workers[pid] = place

    def _become_worker(self, place: int) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(self._cut)  # a copy would keep the lifeline open after the supervisor's end
            self._signals.close()
            self._wakeup.close()
            self._worker.run(self._lifeline, self._tally.turn(place), self._tally.teller(place))
            status = 0
        except BaseException as error:  # noqa: BLE001 - the supervisor's code must not run in this process
            from traceback import format_exception

            self._log("".join(format_exception(error)).rstrip())
        finally:
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._workers.pop(pid, None)
            if status:
                code = os.waitstatus_to_exitcode(status)
                how = f"signal {-code}" if code < 0 else f"exit status {code}"
                self._log(f"engine: worker {pid} ended by {how}; another one takes its place")


class _Place:
    """The path of the socket, held by the engine that was started last.

    Beside the socket lies `engine.lock`, on which that engine holds a record lock (fcntl(2)). Such
    a lock belongs to one process and not to its children, and F_GETLK returns the owner. The text
    is the socket's inode: systemd takes the path without a question, and leaves the lock.
    """

    def __init__(self, path: str, *, yields: bool) -> None:
        """Make socket and lock, beside their paths. Raises OSError.

        `yields`: `take` leaves the path to any other engine.
        """
        self._path = path
        self._yields = yields
        self._directory = os.path.dirname(path)
        self._lock_path = _lock_path(path)
        make_private_directory(self._directory)
        self._new, self._new_lock = f"{path}.{os.getpid()}", f"{self._lock_path}.{os.getpid()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self.listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        with _locked(self._directory):  # a file without a lock belongs to no running engine
            self._remove_leftovers()
            self._lock = os.open(self._new_lock, flags, 0o600)
            fcntl.lockf(self._lock, fcntl.LOCK_EX)
            self.listener.bind(self._new)
        os.chmod(self._new, 0o600)
        self.listener.listen(BACKLOG)
        self._identity = os.stat(self._new).st_ino
        os.write(self._lock, b"%d" % self._identity)

    def take(self) -> None:
        """Take the path, and tell the engine that held it to end.

        Raises FileExistsError if a program that is no such engine serves at the path, or any engine
        if this one yields.
        """
        with _locked(self._directory):
            old = self._holder()
            is_there = old >= 0 and not _is_displaced(self._path)
            if self._yields and (is_there or self._is_served()):
                self._discard()
                raise FileExistsError(errno.EEXIST, "another engine serves there", self._path)
            if not is_there and self._is_served():
                self._discard()
                raise FileExistsError(
                    errno.EEXIST,
                    "another program serves there, systemd perhaps: use systemctl restart",
                    self._path,
                )
            os.rename(self._new_lock, self._lock_path)
            os.rename(self._new, self._path)
            if old >= 0:
                signal.pidfd_send_signal(old, signal.SIGTERM)
                os.close(old)

    def leave(self) -> None:
        """Remove the path, unless another engine has taken it."""
        with _locked(self._directory), suppress(FileNotFoundError):
            if os.stat(self._path).st_ino == self._identity:
                os.unlink(self._path)
                os.unlink(self._lock_path)

    def _remove_leftovers(self) -> None:
        """Remove the files of engines that were killed before they took the path."""
        stems = (os.path.basename(self._path), os.path.basename(self._lock_path))
        for name in os.listdir(self._directory):
            stem, _, number = name.rpartition(".")
            is_ours = stem in stems and number.isdecimal()
            if is_ours and lock_owner(f"{self._lock_path}.{number}") < 0:
                os.unlink(f"{self._directory}/{name}")

    def _holder(self) -> int:
        """Return a pidfd of the engine that has the lock, -1 for none."""
        pid = lock_owner(self._lock_path)
        with suppress(ProcessLookupError):
            return -1 if pid < 0 else os.pidfd_open(pid)
        return -1  # it ended a moment ago

    def _is_served(self) -> bool:
        """Tell whether a process listens at the path."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.connect(self._path)
            except BlockingIOError:  # a listener with a full backlog
                return True
            except OSError:
                return False
            return True

    def _discard(self) -> None:
        os.unlink(self._new)
        os.unlink(self._new_lock)


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Let one engine in at a time that changes socket and lock. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def owner_of(path: str) -> int:
    """Return the id of the process whose engine has made the socket `path`, -1 for none.

    systemd's socket has none, also where an engine that was there before it still runs. Raises
    OSError.
    """
    with suppress(FileNotFoundError), _locked(os.path.dirname(path)):
        return -1 if _is_displaced(path) else lock_owner(_lock_path(path))
    return -1


def _end_displaced(path: str) -> None:
    """Tell the engine to end whose socket at `path` systemd has replaced by its own."""
    with suppress(OSError), _locked(os.path.dirname(path)):
        owner = lock_owner(_lock_path(path))
        if owner > 0 and _is_displaced(path):
            os.kill(owner, signal.SIGTERM)  # the lock is of a process that has not ended


def _is_displaced(path: str) -> bool:
    """Tell whether another socket is at `path` than that of the engine that took the lock last.

    An engine of an older build says nothing of its socket, and counts as not displaced.
    """
    with suppress(OSError), open(_lock_path(path), "rb") as file:
        told = file.read(_INODE_BYTES_MAX)
        return told not in (b"", b"%d" % os.stat(path).st_ino)
    return False


def _lock_path(path: str) -> str:
    return f"{os.path.dirname(path)}/engine.lock"


def lock_owner(path: str) -> int:
    """Return the id of another process that holds a record lock on `path`, -1 for none."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return -1
    try:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, question))
    finally:
        os.close(fd)
    return -1 if kind == fcntl.F_UNLCK else pid


def _given_socket() -> socket.socket | None:
    """Return the socket that systemd passed, None for none (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    fcntl.fcntl(_GIVEN_SOCKET, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    listener = socket.socket(fileno=_GIVEN_SOCKET)
    listener.settimeout(0)
    return listener


def _import_the_rest(*, with_jsonschema: bool = True) -> None:
    """Import modules that functions import on demand: an upgrade may remove their files.

    `with_jsonschema`: also jsonschema, 4 MB, which only a refusal needs. An engine on demand does
    not outlive its build, so its worker imports that for a refusal, and is replaced later.
    """
    for module in _LAZY:
        __import__(module)
    if with_jsonschema:
        with suppress(CNIError):  # a refusal loads all of jsonschema
            schema.validate({}, {"type": "array"})
