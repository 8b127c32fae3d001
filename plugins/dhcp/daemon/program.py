"""`dhcp daemon`: its options, its socket, its beginning and its end."""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel.netns import OWN, NetNS
from cni_common.node.journal import make_private_directory
from cni_common.spec.names import is_absolute
from plugins.dhcp.client import releases_of
from plugins.dhcp.conf import DEFAULT_SOCKET
from plugins.dhcp.daemon.carrier import Carriers
from plugins.dhcp.daemon.loop import Loop
from plugins.dhcp.daemon.machine import Pace
from plugins.dhcp.daemon.service import Service
from plugins.dhcp.daemon.store import Store
from plugins.dhcp.daemon.upkeep import Node

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Mapping, Sequence

    Log = Callable[[str], object]

_LEASES = "/var/lib/cni/dhcp"
_FIRST_LISTENER = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
_BACKLOG = 1024
_ANSWER_SECONDS = 2.0
_FIRST_WAIT_MAX = 4.0  # seconds (RFC 2131 section 4.1)
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
# Modules that functions import later: by then an upgrade may have taken the files away.
_LATER = ("ctypes", "hashlib", "traceback", "cni_common.kernel.rtnetlink")
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|ms|s|m|h)")


class StartError(Exception):
    """The daemon cannot start; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line, which are the reference's and `leasedir`."""

    pidfile: str
    hostprefix: str
    socketpath: str
    leasedir: str
    broadcast: bool
    timeout: float  # seconds
    resendmax: float
    resendtimeout: float


def run(arguments: Sequence[str], environ: Mapping[str, str], log: Log) -> int:
    """Serve until a signal ends it; return the exit status, 2 for wrong arguments."""
    try:
        options = parse(arguments)
    except SystemExit as end:  # after --help, or an error that argparse has printed
        return int(end.code or 0)
    say = partial(_say, log)
    try:
        serve(options, environ, say)
    except StartError as error:
        say(str(error))
        return 1
    except OSError as error:
        where = f": '{error.filename}'" if error.filename else ""
        say(f"{error.strerror or error}{where}")
        return 1
    return 0


def parse(arguments: Sequence[str]) -> Options:
    """Return the options; each is accepted as -x and --x, as Go's flags are."""
    from argparse import ArgumentParser

    parser = ArgumentParser(
        prog="dhcp daemon",
        description="Get and keep DHCP leases for the containers whose IPAM plugin is dhcp.",
        allow_abbrev=False,
    )
    _add(parser, "pidfile", "", "file for the process id, an absolute path", "PATH")
    _add(parser, "hostprefix", "", "put before the paths of socket and namespaces", "PATH")
    _add(parser, "socketpath", "", f"socket for the plugin (default {DEFAULT_SOCKET})", "PATH")
    _add(parser, "leasedir", _LEASES, "directory of the leases (default %(default)s)", "PATH")
    parser.add_argument(
        *("-broadcast", "--broadcast"),
        nargs="?",
        const=True,
        default=False,
        type=_truth,
        metavar="BOOL",
        help="have servers broadcast their answers",
    )
    for name, default, text in (
        ("timeout", "10s", "first wait for an answer, of which at most 4s count"),
        ("resendmax", "62s", "longest wait: each is twice as long as the one before"),
        ("resendtimeout", "208s", "give an address up after that; an ADD does after 75s"),
    ):
        _add(parser, name, default, f"{text} (default %(default)s)", "DURATION", _duration)
    return Options(**vars(parser.parse_args(arguments)))


def serve(options: Options, environ: Mapping[str, str], log: Log) -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError, OSError."""
    if os.geteuid():
        raise StartError("needs root: it enters the namespaces of containers")
    if options.pidfile and not is_absolute(options.pidfile):
        raise StartError(f"-pidfile '{options.pidfile}' is no absolute path")
    _prepare()
    path = options.hostprefix + (options.socketpath or DEFAULT_SOCKET)
    try:
        store = Store(options.leasedir, log)
    except BlockingIOError:
        raise StartError(
            f"another daemon keeps the leases in '{options.leasedir}': end that, or choose another"
            " -leasedir"
        ) from None
    listener, is_own = _listener(path, environ)
    loop = Loop(lambda error: log(_described(error)))
    node = Node(
        loop,
        store,
        log,
        NetNS(OWN),
        options.hostprefix,
        _boot_id(),
        Pace(min(options.timeout, _FIRST_WAIT_MAX), options.resendmax),
        options.broadcast,
    )
    service = Service(node, options.resendtimeout)
    with _Signals(loop):
        service.resume()
        service.work_off(releases_of(path))
        Carriers(node.host, loop, service.link_returned)
        loop.watch(listener, lambda: service.accept(listener))
        _write_pid(options.pidfile)
        log(f"serves at '{path}', leases are in '{options.leasedir}'")
        try:
            loop.run()
        finally:
            for one in (path if is_own else "", options.pidfile):
                with suppress(FileNotFoundError):
                    os.unlink(one)
            listener.close()
            store.close()


class _Signals:
    """SIGTERM and SIGINT stop the loop while this is entered."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._receiver, self._sender = socket.socketpair()

    def __enter__(self) -> None:
        self._sender.settimeout(0)
        signal.set_wakeup_fd(self._sender.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        self._loop.watch(self._receiver, self._loop.stop)

    def __exit__(self, *_error: object) -> None:
        signal.set_wakeup_fd(-1)
        self._loop.close()
        self._receiver.close()
        self._sender.close()


def _listener(path: str, environ: Mapping[str, str]) -> tuple[socket.socket, bool]:
    """Return the socket that systemd has opened, or a new one at `path`, and whether it is that."""
    if environ.get("LISTEN_PID") == str(os.getpid()) and environ.get("LISTEN_FDS"):
        if environ["LISTEN_FDS"] != "1":
            raise StartError(f"systemd gives {environ['LISTEN_FDS']} sockets, where one is due")
        given = socket.socket(fileno=_FIRST_LISTENER)
        given.settimeout(0)
        os.set_inheritable(given.fileno(), False)  # noqa: FBT003 - its only form
        return given, False
    make_private_directory(os.path.dirname(path))
    _refuse_served(path)
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.settimeout(0)
    try:
        listener.bind(path)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen at '{path}': {error.strerror or error}") from None
    os.chmod(path, 0o600)
    listener.listen(_BACKLOG)
    return listener, True


def _refuse_served(path: str) -> None:
    """Raise StartError if a daemon with other leases answers there, such as the reference's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_ANSWER_SECONDS)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return  # nothing, or what a killed daemon has left
        except OSError:
            pass  # it is there, and does not answer
    raise StartError(f"another daemon serves at '{path}': end that, or choose another -socketpath")


def _write_pid(path: str) -> None:
    if not path:
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        os.write(fd, str(os.getpid()).encode())
    finally:
        os.close(fd)


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _prepare() -> None:
    """Have as many descriptors as possible, since each ADD needs five, and all modules."""
    import resource

    for name in _LATER:
        __import__(name)

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _add(  # noqa: PLR0917 - of an option
    parser: ArgumentParser,
    name: str,
    default: str,
    text: str,
    metavar: str,
    kind: Callable[[str], object] = str,
) -> None:
    parser.add_argument(
        f"-{name}", f"--{name}", default=default, help=text, metavar=metavar, type=kind
    )


def _truth(text: str) -> bool:
    """Return the boolean in `text`, as Go reads one. Raises ValueError."""
    lower = text.lower()
    if lower not in ("1", "t", "true", "0", "f", "false"):
        raise ValueError
    return lower in ("1", "t", "true")


def _duration(text: str) -> float:
    """Return the seconds in `text`, such as 1m30s, as Go writes durations. Raises ValueError."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds < 1e6:
        raise ValueError
    return seconds


def _described(error: Exception) -> str:
    from traceback import format_exception

    return "".join(format_exception(error)).rstrip()


def _say(log: Log, text: str) -> None:
    for line in text.splitlines():
        log(f"dhcp daemon: {line}")
