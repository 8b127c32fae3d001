"""One worker of the engine: takes requests over from launchers, one at a time.

The comment at the top of launcher/launcher.c describes the messages. A worker answers as the
one-shot entry would: same user, namespaces, working directory and file descriptors.
"""

from __future__ import annotations

import fcntl
import gc
import os
import select
import signal
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.netns import OWN, NetNS
from cni_common.node.host import STATE_DIR, Host
from cni_common.serve import protocol
from cni_common.serve.protocol import Reply, execute, failure, respond
from cni_common.serve.stdio import read_all, say, write_all
from cni_common.serve.surroundings import PROCESS, opened, surroundings
from cni_common.spec.errors import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cni_common.node.host import Loader

PROTOCOL = 3  # as in launcher/launcher.c, which must be of the same build
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_SCM_CREDENTIALS = 2  # linux/socket.h; Python 3.11 has no name for it
_CHALLENGE_BYTES = 16
_LENGTH, _STATUS = struct.Struct("<I"), struct.Struct("<i")
_TYPE_BYTES_MAX = 255  # NAME_MAX of linux/limits.h: the type is the name of an executable
_DESCRIPTOR = struct.Struct("i")
_DESCRIPTORS_MAX = 5  # stdin, stdout, stderr, environment, and CNI_NETNS if it could be opened
_CONTROL_BYTES = socket.CMSG_SPACE(_DESCRIPTORS_MAX * _DESCRIPTOR.size) + socket.CMSG_SPACE(
    _PEER.size
)
# struct timeval, 2 s: the launcher is our own program, and makes no pause between its messages.
_CONVERSATION_TIME = struct.pack("@ll", 2, 0)
BACKLOG = 128  # launchers that wait at the socket; the next one starts the frozen program
_COLLECT_EVERY = 100  # requests
_RENEW_SECONDS = 5.0  # without a request, after which a worker of an engine on demand is replaced
# More than processors, since workers also wait, for instance for an IPAM plugin. If all wait,
# launchers start the frozen program. But processes that take turns lose the processor's caches: so
# half of them serve (Turn), and the others when a request has taken so many seconds.
_PATIENCE_SECONDS = 0.2
_WORKERS = min(4 * len(os.sched_getaffinity(0)), 16)
# Less memory: each that has served has 6 MB for itself, and one that has not 1.5.
ON_DEMAND_WORKERS = min(2 * len(os.sched_getaffinity(0)), 4)


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of an engine."""

    build: str  # launchers of another build start the frozen program
    workers: int = _WORKERS
    requests: int = 10_000  # served by a worker before another replaces it
    add_seconds: float = protocol.ADD_SECONDS  # until an ADD is given up and rolled back
    status_seconds: float = protocol.STATUS_SECONDS
    other_seconds: float = protocol.OTHER_SECONDS
    undo_seconds: float = protocol.UNDO_SECONDS  # limit of the rollback; then the worker exits
    state_dir: str = STATE_DIR
    idle_seconds: float = 0.0  # without a request, until the engine ends; 0: never
    on_demand: bool = False  # a call has left the engine behind: serve.on_demand

    def seconds_of(self, command: str) -> float:
        """Return the seconds after which a request is given up."""
        return protocol.seconds_of(
            command, self.add_seconds, self.status_seconds, self.other_seconds
        )


class Turn:
    """Which one of some workers waits for launchers: the one that holds a lock (fcntl(2)).

    Such a lock ends with its process, however that ends.
    """

    def __init__(self, fd: int, number: int) -> None:
        """Take byte `number` of a file that the workers do not close."""
        self._fd = fd
        self._number = number
        self._is_held = False

    def take(self, *, wait: bool = True) -> bool:
        """Return whether the turn is ours, as it will be if we wait."""
        if not self._is_held:
            how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
            try:
                fcntl.lockf(self._fd, how, 1, self._number)
            except (BlockingIOError, PermissionError):  # another one has it
                return False
            except OSError:  # no memory for a lock: then more of them wait for launchers
                pass
            self._is_held = True
        return True

    def give(self) -> None:
        """Let another worker wait for launchers."""
        with suppress(OSError):  # as above: what waits for the lock waits on
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._number)
        self._is_held = False


class _Overdue(BaseException):
    """The request's time is over. A BaseException, so that no `except Exception` catches it."""


class Worker:
    """A process that serves requests of the shared, non-blocking socket `listener`."""

    _own: NetNS

    def __init__(
        self,
        settings: Settings,
        load: Loader,
        listener: socket.socket,
        *,
        leave_backlog: bool = False,
    ) -> None:
        """`leave_backlog`: at its end, leave waiting launchers to the socket's next owner."""
        self._settings = settings
        self._load = load
        self._listener = listener
        # Accepted sockets inherit it: the kernel tells which process has sent a message.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._leave_backlog = leave_backlog
        with opened("/proc/self") as process:
            self._surroundings = surroundings(process)
        self._is_patient = self._is_late = False
        self._deadline = 0.0  # of time.monotonic, 0.0 where no request is served
        self._is_to_be_small = settings.on_demand
        # The group of interfaces to delete (IFLA_GROUP): above 2^30, which no other program uses.
        self._link_group = int.from_bytes(os.urandom(4), "little") >> 2 | 1 << 30
        self._deferred: list[Callable[[], None]] = []  # until the launcher has the status

    def run(self, lifeline: int, turn: Turn, tell: Callable[[int], object]) -> None:
        """Serve until Settings.requests, or until the supervisor closes its `lifeline`.

        `tell` gets the number of requests served so far, after each.
        """
        self._turn = turn
        # Open for all requests: closing an nfnetlink socket waits until nftables has freed its
        # objects, under a lock that deletions of interfaces need (nft_rcv_nl_event of the kernel).
        self._open_own()
        signal.signal(signal.SIGALRM, self._on_alarm)
        with select.epoll() as poller:
            poller.register(lifeline, select.EPOLLIN)
            # One request wakes one worker.
            poller.register(self._listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            gc.disable()  # an answer must not wait for a collection
            served = 0
            # An interrupt may strike between any two instructions and leave locks and descriptors
            # open that nothing refers to. So a worker that was interrupted answers and ends.
            while served < self._settings.requests and not self._is_late:
                # A worker that has served shares less memory than a new one.
                if not turn.take(wait=not (served and self._is_to_be_small)):
                    return
                events = poller.poll(_RENEW_SECONDS if served and self._is_to_be_small else None)
                if not events:
                    return
                is_ending = lifeline in (fd for fd, _ in events)
                if is_ending and self._leave_backlog:
                    return
                connection = self._accept()
                if connection:
                    served += self._take(connection)
                    tell(served)
                    if served % _COLLECT_EVERY == 0:
                        gc.collect()
                elif is_ending:
                    return

    def turn_away(self) -> int:
        """Close the connections of waiting launchers: these start the frozen program.

        Return how many, at most BACKLOG.
        """
        count = 0
        with suppress(OSError):  # no descriptor or memory left: the launcher waits on
            while count < BACKLOG and (connection := self._accept()):
                connection.close()
                count += 1
        return count

    def _accept(self) -> socket.socket | None:
        try:
            return self._listener.accept()[0]
        except (BlockingIOError, ConnectionError):
            return None  # another worker was faster, or the launcher has ended

    def _take(self, connection: socket.socket) -> bool:
        """Serve one connection; return False if it brought no request."""
        self._is_patient = True
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE_SECONDS)
        try:
            with connection:
                try:
                    call = self._receive(connection)
                except (OSError, ValueError):
                    return False  # the launcher ended, or the peer is no launcher of ours
                if call is None:
                    return False
                with suppress(_Overdue):  # the alarm may come just before its work
                    self._serve(call)
            return True
        finally:
            self._is_patient = False  # first: the alarm may come before the next statement
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _receive(self, connection: socket.socket) -> Call | None:
        """Return the request; None if the launcher must start the frozen program.

        Raises OSError, ValueError.
        """
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _CONVERSATION_TIME)
        pid, uid = peer_of(connection)
        if uid != 0:
            return None
        # A process id can be reused between connect and now. So the challenge comes back from it
        # after /proc/PID was opened, and before the surroundings are read.
        with opened(f"/proc/{pid}") as process:
            challenge = self._greet(connection)
            directory = os.open("cwd", PROCESS, dir_fd=process)
            descriptors: Sequence[int] = ()
            try:
                type, descriptors = _request(connection, challenge, pid)
                if surroundings(process) != self._surroundings:
                    raise ValueError("a launcher that sees other files")
            except BaseException:
                for fd in (directory, *descriptors):
                    os.close(fd)
                raise
        return Call(
            connection,
            type,
            directory=directory,
            descriptors=descriptors,
            on_delivery=self._end_limit,
        )

    def _greet(self, connection: socket.socket) -> bytes:
        """Send what begins the conversation; return the challenge in it. Raises OSError."""
        challenge = os.urandom(_CHALLENGE_BYTES)
        build = self._settings.build.encode()
        greeting = b"pycni\0" + struct.pack("<H", PROTOCOL) + challenge + build
        connection.send(greeting, socket.MSG_DONTWAIT)
        return challenge

    def _serve(self, call: Call) -> None:
        command = call.environ.get("CNI_COMMAND", "")
        seconds = self._settings.seconds_of(command)
        status, stdin = 1, b""
        self._limit(seconds)
        try:
            os.fchdir(call.directory)
            stdin = call.read_stdin()
            with self._host(call) as host:
                reply = respond(call.type, call.environ, stdin, host, deliver=call.deliver)
                status = reply.exit_code
        except OSError as error:  # of read_stdin: respond raises no Exception
            msg = f"cannot read the configuration from stdin: {error.strerror}"
            call.deliver(failure(Code.IO_FAILURE, msg))
        except _Overdue as error:
            call.deliver(protocol.given_up(command, seconds, error, stdin))
        finally:
            self._end_limit()
            # Before the runtime hears of the end: it may unmount the file systems of these files.
            os.chdir("/")
            call.close()
            call.end(status)
            os.sched_yield()  # the launcher may have been woken on this processor
            self._finish(status)

    def _finish(self, status: int) -> None:
        """Do what need not keep the launcher waiting."""
        while self._deferred:
            self._deferred.pop()()
        if status:
            self._renew()

    def _host(self, call: Call) -> Host:
        given = {call.environ.get("CNI_NETNS", ""): call.netns} if call.netns >= 0 else {}
        host = Host(
            self._load,
            "",
            call.log,
            given,
            execute=execute,
            build=self._settings.build,
            own=self._own,
            link_group=self._link_group,
            state_dir=self._settings.state_dir,
        )
        host.defer = self._deferred.append
        return host

    def _renew(self) -> None:
        """Open new sockets: answers to failed requests may still arrive on the old ones."""
        self._own.close()
        self._open_own()

    def _open_own(self) -> None:
        self._own = NetNS(OWN)

    def _limit(self, seconds: float) -> None:
        """Interrupt the request after so many seconds, but not before another worker has a turn."""
        self._is_late = False
        self._deadline = time.monotonic() + seconds
        if not self._is_patient:
            signal.setitimer(signal.ITIMER_REAL, seconds, self._settings.undo_seconds)

    def _end_limit(self) -> None:
        self._deadline = 0.0

    def _on_alarm(self, _number: int, _frame: object) -> None:
        if self._is_patient:
            self._is_patient = False
            self._turn.give()
        if not self._deadline:
            return
        left = self._deadline - time.monotonic()
        again = self._settings.undo_seconds
        signal.setitimer(signal.ITIMER_REAL, left if left > 0 else again, again)
        if left > 0:
            return
        if self._is_late:
            os._exit(1)  # the rollback hangs as well; the launcher reports a missing answer
        self._is_late = True
        raise _Overdue


class Call:
    """One request of a launcher."""

    def __init__(
        self,
        connection: socket.socket,
        type: str,
        *,
        directory: int,
        descriptors: Sequence[int],
        on_delivery: Callable[[], object],
    ) -> None:
        """Take over the descriptors; close them on failure. Raises OSError."""
        self.type = type
        self.directory = directory
        self._stdin, self._stdout, self._stderr, environment = descriptors[:4]
        self.netns = descriptors[4] if len(descriptors) > 4 else -1
        self._connection = connection
        self._on_delivery = on_delivery
        self._descriptors = (directory, *descriptors)
        try:
            self.environ = _environ(environment)
        except OSError:
            self.close()
            raise

    def read_stdin(self) -> bytes:
        """Return all bytes of stdin. Raises OSError."""
        return read_all(self._stdin)

    def log(self, text: str) -> None:
        """Write a line to the runtime's stderr."""
        say(self._stderr, text)

    def deliver(self, reply: Reply) -> bool:
        """Write the reply to stdout; return False if the launcher or the reader is gone.

        After a complete write the request is no longer abandoned.
        """
        try:
            if self._is_alone():
                return False
            write_all(self._stdout, reply.stdout)
            if self._is_alone():
                return False
            self._on_delivery()
        except OSError as error:
            self.log(f"cannot write to stdout: {error.strerror}")
            return False
        except _Overdue:
            return False
        return True

    def end(self, status: int) -> None:
        """Send the exit status to the launcher."""
        with suppress(OSError):  # the launcher is gone
            self._connection.send(_STATUS.pack(status), socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Close the descriptors of the request."""
        for fd in self._descriptors:
            os.close(fd)

    def _is_alone(self) -> bool:
        """Tell whether the launcher has ended: a runtime kills it at its own time limit."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Return process id and user id of the peer of `sock` (SO_PEERCRED of unix(7))."""
    pid, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid


def _request(connection: socket.socket, challenge: bytes, pid: int) -> tuple[str, Sequence[int]]:
    """Return the plugin's type and the descriptors, which process `pid` of root has sent.

    The descriptors come with our challenge. Raises OSError, ValueError.
    """
    size = _CHALLENGE_BYTES + _LENGTH.size + _TYPE_BYTES_MAX + 1
    data, control, flags, _ = connection.recvmsg(size, _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC)
    descriptors = [
        fd
        for _, kind, part in control
        if kind == socket.SCM_RIGHTS
        for (fd,) in _DESCRIPTOR.iter_unpack(part[: len(part) // 4 * 4])
    ]
    senders = [_PEER.unpack(part)[:2] for _, kind, part in control if kind == _SCM_CREDENTIALS]
    echo, data = data[:_CHALLENGE_BYTES], data[_CHALLENGE_BYTES:]
    length = _LENGTH.unpack_from(data)[0] if len(data) >= _LENGTH.size else -1
    is_whole = not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) and len(descriptors) >= 4
    is_proven = senders == [(pid, 0)] and echo == challenge
    if is_whole and is_proven and length == len(data) - _LENGTH.size:
        return os.fsdecode(data[_LENGTH.size :]), descriptors
    for fd in descriptors:
        os.close(fd)
    raise ValueError("not what a launcher sends")


def _environ(fd: int) -> Mapping[str, str]:
    """Return the variables in a file like /proc/PID/environ; of equal names the first counts."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    environ: dict[str, str] = {}
    for entry in os.fsdecode(data).split("\0"):
        name, equals, value = entry.partition("=")
        if equals:
            environ.setdefault(name, value)
    return environ
