"""One worker of the engine: takes requests over from launchers, one at a time.

The conversation is told at the top of launcher/launcher.c. A worker answers as the one-shot edge
would: same user, same namespaces, same working directory, same file descriptors.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.netns import OWN, NetNS
from cni_common.node.host import STATE_DIR, Host
from cni_common.serve.protocol import Reply, execute, failure, respond
from cni_common.serve.stdio import read_all, say, write_all
from cni_common.spec.errors import Code
from cni_common.spec.request import Command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cni_common.node.host import Loader

PROTOCOL = 2  # as in launcher/launcher.c, which must be of the same build
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_SCM_CREDENTIALS = 2  # linux/socket.h; Python 3.11 has no name for it
_CHALLENGE_BYTES = 16
_LENGTH, _STATUS = struct.Struct("<I"), struct.Struct("<i")
_TYPE_BYTES_MAX = 255  # NAME_MAX: it is the name of an executable
_DESCRIPTORS_MAX = 5  # stdin, stdout, stderr, environment, and CNI_NETNS if it could be opened
_CONVERSATION_SECONDS = 2.0  # the launcher is a program of ours: it does not pause
_COLLECT_EVERY = 100  # requests
# Few, as those that take turns find less of theirs in the processor's caches; more than processors,
# as they also wait, for an IPAM plugin perhaps. When all do, launchers start their own program.
_WORKERS = min(4 * len(os.sched_getaffinity(0)), 16)
# A process whose /proc/PID has others of these sees another network or other files than we do.
_SURROUNDINGS = ("ns/net", "ns/mnt", "root")
_PROCESS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen when an engine is started."""

    build: str  # of launchers that are served; others start their own program
    workers: int = _WORKERS
    requests: int = 10_000  # that a worker serves before another takes its place
    add_seconds: float = 90.0  # until an ADD is taken back: less than runtimes wait for it
    other_seconds: float = 45.0  # likewise until any other command is given up
    undo_seconds: float = 30.0  # for taking back; then the worker ends
    state_dir: str = STATE_DIR


class _Overdue(BaseException):
    """The request's time is over. A BaseException: nothing may take it for a failure of its own."""


class Worker:
    """A process that serves what arrives on the shared socket `listener`, which does not block."""

    _own: NetNS

    def __init__(
        self,
        settings: Settings,
        load: Loader,
        listener: socket.socket,
        *,
        leave_backlog: bool = False,
    ) -> None:
        """`leave_backlog`: launchers that wait when it ends are for whoever has the socket then."""
        self._settings = settings
        self._load = load
        self._listener = listener
        self._leave_backlog = leave_backlog
        with _opened("/proc/self") as process:
            self._surroundings = _surroundings(process)
        self._is_late = False
        # A number that nobody else gives to interfaces: people count from 0.
        self._doomed = int.from_bytes(os.urandom(4), "little") >> 2 | 1 << 30

    def run(self, lifeline: int) -> None:
        """Serve until there were enough requests, or the supervisor has closed its `lifeline`."""
        # Open for all requests: to close a socket of nfnetlink waits for what nftables has to free,
        # under a lock that deletions of interfaces need (nft_rcv_nl_event of the kernel).
        self._open_own()
        signal.signal(signal.SIGALRM, self._on_alarm)
        with select.epoll() as poller:
            poller.register(lifeline, select.EPOLLIN)
            # One request wakes one worker.
            poller.register(self._listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            gc.disable()  # an answer shall not wait for it
            served = 0
            # An interrupt may strike between any two instructions and leave locks and descriptors
            # open that nothing refers to. So a worker that was interrupted answers and ends.
            while served < self._settings.requests and not self._is_late:
                is_ending = lifeline in (fd for fd, _ in poller.poll())
                if is_ending and self._leave_backlog:
                    return
                connection = self._accept()
                if connection:
                    served += self._take(connection)
                    if served % _COLLECT_EVERY == 0:
                        gc.collect()
                elif is_ending:
                    return

    def turn_away(self) -> None:
        """Have the launchers that wait start their own program."""
        with suppress(OSError):  # no descriptor or memory for one: then it waits on
            while connection := self._accept():
                connection.close()

    def _accept(self) -> socket.socket | None:
        try:
            return self._listener.accept()[0]
        except (BlockingIOError, ConnectionError):
            return None  # another worker was faster, or the launcher is gone

    def _take(self, connection: socket.socket) -> bool:
        """Serve one connection; False when no request came by it."""
        with connection:
            try:
                call = self._receive(connection)
            except (OSError, ValueError):
                return False  # the launcher ended, or it is none of ours
            if call is None:
                return False
            with suppress(_Overdue):  # in the instant after the end
                self._serve(call)
        return True

    def _receive(self, connection: socket.socket) -> Call | None:
        """Return what is to be done; None: the launcher has to start its own program."""
        connection.settimeout(_CONVERSATION_SECONDS)
        pid, uid = peer_of(connection)
        if uid != 0:
            return None
        with _opened(f"/proc/{pid}") as process:
            challenge = self._greet(connection, pid)
            if challenge is None or _surroundings(process) != self._surroundings:
                return None
            # By this the plugins know each other: it is the file that the runtime has started.
            executable = os.readlink("exe", dir_fd=process)
            directory = os.open("cwd", _PROCESS, dir_fd=process)
        try:
            connection.send(challenge)
            type, descriptors = _request(connection)
        except BaseException:
            os.close(directory)
            raise
        return Call(
            connection, type, executable=executable, directory=directory, descriptors=descriptors
        )

    def _greet(self, connection: socket.socket, pid: int) -> bytes | None:
        """Have process `pid` send our challenge back; return the challenge that came with it.

        None: another process has answered, or the answer is another one. A process id can be reused
        between connect and now, so it is asked for after /proc/PID was opened.
        """
        ours = os.urandom(_CHALLENGE_BYTES)
        build = self._settings.build.encode()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        connection.send(b"pycni\0" + struct.pack("<H", PROTOCOL) + ours + build)
        answer, control, _, _ = connection.recvmsg(
            2 * _CHALLENGE_BYTES + 1, socket.CMSG_SPACE(_PEER.size)
        )
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        senders = [_PEER.unpack(data) for _, kind, data in control if kind == _SCM_CREDENTIALS]
        is_proven = [sender[:2] for sender in senders] == [(pid, 0)]
        if not is_proven or len(answer) != 2 * _CHALLENGE_BYTES or not answer.startswith(ours):
            return None
        return answer[_CHALLENGE_BYTES:]

    def _serve(self, call: Call) -> None:
        command = call.environ.get("CNI_COMMAND", "")
        is_add = command == Command.ADD
        seconds = self._settings.add_seconds if is_add else self._settings.other_seconds
        status = 1
        self._is_late = False
        signal.setitimer(signal.ITIMER_REAL, seconds, self._settings.undo_seconds)
        try:
            os.fchdir(call.directory)
            stdin = call.read_stdin()
            with self._host(call) as host:
                reply = respond(call.type, call.environ, stdin, host, deliver=call.deliver)
                status = reply.exit_code
        except OSError as error:  # of read_stdin: respond raises nothing
            msg = f"cannot read the configuration from stdin: {error.strerror}"
            call.deliver(failure(Code.IO_FAILURE, msg))
        except _Overdue as error:
            rest = "what was begun is undone" if is_add else "what it has not done is still there"
            if hasattr(error, "__notes__"):
                rest = "what was begun is undone as far as it can be"
            msg = f"{command} was given up after {seconds:g} s; {rest}, try again"
            call.deliver(failure(Code.TRY_AGAIN_LATER, msg, error))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            # Before the runtime hears of the end: it may want to unmount what is open here.
            os.chdir("/")
            call.close()
            call.end(status)
            if status:
                self._renew()

    def _host(self, call: Call) -> Host:
        given = {call.environ.get("CNI_NETNS", ""): call.netns} if call.netns >= 0 else {}
        return Host(
            self._load,
            call.executable,
            call.log,
            given,
            execute=execute,
            own=self._own,
            state_dir=self._settings.state_dir,
        )

    def _renew(self) -> None:
        """Open new sockets: answers to what has failed may still come on the old ones."""
        self._own.close()
        self._open_own()

    def _open_own(self) -> None:
        self._own = NetNS(OWN)
        self._own.doomed = self._doomed

    def _on_alarm(self, _number: int, _frame: object) -> None:
        if self._is_late:
            os._exit(1)  # taking it back hangs as well; the launcher says that there is no answer
        self._is_late = True
        raise _Overdue


class Call:
    """One request of a launcher."""

    def __init__(
        self,
        connection: socket.socket,
        type: str,
        *,
        executable: str,
        directory: int,
        descriptors: Sequence[int],
    ) -> None:
        """Take over the descriptors, or close them. Raises OSError."""
        self.type = type
        self.executable = executable
        self.directory = directory
        self._stdin, self._stdout, self._stderr, environment = descriptors[:4]
        self.netns = descriptors[4] if len(descriptors) > 4 else -1
        self._connection = connection
        self._descriptors = (directory, *descriptors)
        try:
            connection.settimeout(0)
            self.environ = _environ(environment)
        except OSError:
            self.close()
            raise

    def read_stdin(self) -> bytes:
        """Return all that comes on stdin. Raises OSError."""
        return read_all(self._stdin)

    def log(self, text: str) -> None:
        """Tell the runtime, on the stderr that it gave."""
        say(self._stderr, text)

    def deliver(self, reply: Reply) -> bool:
        """Print the reply; False when the launcher is gone, or whoever reads what it prints.

        Once it is printed, nothing is given up any more.
        """
        try:
            if self._is_alone():
                return False
            write_all(self._stdout, reply.stdout)
            if self._is_alone():
                return False
            signal.setitimer(signal.ITIMER_REAL, 0)
        except OSError as error:
            self.log(f"cannot write to stdout: {error.strerror}")
            return False
        except _Overdue:
            return False
        return True

    def end(self, status: int) -> None:
        """Have the launcher end with `status`."""
        with suppress(OSError):  # it is gone
            self._connection.send(_STATUS.pack(status))

    def close(self) -> None:
        """Close the descriptors that came with it."""
        for fd in self._descriptors:
            os.close(fd)

    def _is_alone(self) -> bool:
        """Tell whether the launcher has ended: a runtime that lost patience kills it."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Return process and user id of who connected, or who listens (SO_PEERCRED of unix(7))."""
    pid, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid


def _request(connection: socket.socket) -> tuple[str, Sequence[int]]:
    """Return the plugin's type and the descriptors. Raises OSError, ValueError."""
    size = _LENGTH.size + _TYPE_BYTES_MAX + 1
    data, descriptors, flags, _ = socket.recv_fds(
        connection, size, _DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
    )
    try:
        length = _LENGTH.unpack_from(data)[0] if len(data) >= _LENGTH.size else -1
        is_whole = not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        if not is_whole or length != len(data) - _LENGTH.size or len(descriptors) < 4:
            raise ValueError("not what a launcher sends")
        return os.fsdecode(data[_LENGTH.size :]), descriptors
    except ValueError:
        for fd in descriptors:
            os.close(fd)
        raise


def _environ(fd: int) -> Mapping[str, str]:
    """Return the variables in a file like /proc/PID/environ; of two alike the first counts."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    environ: dict[str, str] = {}
    for entry in os.fsdecode(data).split("\0"):
        name, equals, value = entry.partition("=")
        if equals:
            environ.setdefault(name, value)
    return environ


@contextmanager
def _opened(process: str) -> Iterator[int]:
    """Open a directory of /proc, which never shows a later process of the same id."""
    fd = os.open(process, _PROCESS)
    try:
        yield fd
    finally:
        os.close(fd)


def _surroundings(process: int) -> Sequence[tuple[int, int]]:
    """Return what tells whether a process sees the same network and files. Raises OSError."""
    found = [os.stat(name, dir_fd=process) for name in _SURROUNDINGS]
    return [(status.st_dev, status.st_ino) for status in found]
