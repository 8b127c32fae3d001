"""The one-shot entry: one process, one request. Only this file reads argv and the environment."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

from cni_common.serve.stdio import read_all, say, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    from cni_common.node.host import Loader
    from cni_common.serve.cli import Command
    from cni_common.serve.protocol import Reply

    Program = Callable[[Sequence[str], Mapping[str, str], Callable[[str], object]], int]

NO_PROGRAMS: Mapping[tuple[str, ...], Program] = {}
_VERSION = "VERSION"
_CHOICE = "_PYCNI_ENGINE"  # what launcher/launcher.c has read where it found no engine
_REFERENCE_VERSION = "1.9.1"  # of the reference plugins, as deploy/prerequisites.sh builds them
_PROGRAM = "pycni"  # the only name of the executable that is not a plugin's
_UNDELIVERED = 3  # exit status of a command whose output could not be written


class _Terminated(BaseException):
    """A terminating signal arrived, or the time is over.

    A BaseException, so that no `except Exception` catches it.
    """

    is_late = False


def main(
    load: Loader,
    load_all: Callable[[], object] = lambda: None,
    commands: Callable[[], Mapping[str, Command]] = dict,
    programs: Mapping[tuple[str, ...], Program] = NO_PROGRAMS,
) -> int:
    """Serve the request in the environment and on stdin; return the exit status.

    `load_all` imports all plugins that `load` can load, for the engine. `commands` returns the
    commands of `pycni` that need the plugins. `programs` are a plugin's own, by the plugin's name
    and the first argument.
    """
    has_stdout = _complete_standard_streams()
    choice = os.environ.pop(_CHOICE, "")  # first of all: no other program is to have it
    plugin = os.path.basename(sys.argv[0])
    environ = dict(os.environ)
    command = environ.get("CNI_COMMAND", "")
    gc.enable()  # the bundle starts without
    if program := programs.get((plugin, *sys.argv[1:2])):
        return program(sys.argv[2:], environ, _log)
    if not command:
        return _command_line(load, load_all, commands) if plugin == _PROGRAM else _about(plugin)
    gc.disable()  # the process ends before a collection pays
    try:
        stdin = b"" if command == _VERSION else read_all(0)
    except OSError as error:
        _write(_failure(5, f"cannot read the configuration from stdin: {error.strerror}"))
        return 1
    if command != _VERSION:
        _raise_on_signals()
    try:
        status = _serve(plugin, environ, stdin, load, has_stdout=has_stdout)
        if choice:
            _leave_engine(choice)
        return status
    except _Terminated as error:
        told = _given_up(command, error, stdin) if error.is_late else _terminated(error, stdin)
        _write(told)
        return 1


def _serve(
    plugin: str, environ: dict[str, str], stdin: bytes, load: Loader, *, has_stdout: bool
) -> int:
    from cni_common.node.host import Host
    from cni_common.serve.protocol import UNDO_SECONDS, execute, respond, seconds_of

    command = environ["CNI_COMMAND"]

    def deliver(reply: Reply) -> bool:
        if command != _VERSION:
            _limit_time(0)
            _ignore_signals()  # a finished ADD must be reported or rolled back, not interrupted
        return has_stdout and _write(reply.stdout)

    if command != _VERSION:
        _limit_time(seconds_of(command), UNDO_SECONDS)
    path = os.path.realpath(sys.argv[0])
    is_ending = command == "DEL"  # other commands may delete many interfaces
    with Host(load, path, _log, execute=execute, is_ending=is_ending) as host:
        return respond(plugin, environ, stdin, host, deliver=deliver).exit_code


def _leave_engine(choice: str) -> None:
    try:
        from cni_common.serve import on_demand

        on_demand.leave(choice, os.path.dirname(sys.argv[0]))
    except Exception as error:  # noqa: BLE001 - the call has its answer, and stdout one object
        _log(f"pycni: no engine is left behind: {error}")


def _command_line(
    load: Loader,
    load_all: Callable[[], object],
    commands: Callable[[], Mapping[str, Command]],
) -> int:
    from cni_common.serve import cli

    try:
        status = cli.run(sys.argv[1:], load, load_all, commands())
        if sys.stdout:
            sys.stdout.flush()  # the frozen program exits without a flush
    except OSError as error:  # a command tells of all others by itself
        _end_if_unread(error)
        _log(f"pycni: cannot write to stdout: {error.strerror}")
        _drop_output()
        return _UNDELIVERED
    return status


def _end_if_unread(error: OSError) -> None:
    """End in silence, by SIGPIPE as other programs do, if the reader of stdout has gone."""
    import errno
    import signal

    if error.errno == errno.EPIPE:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)


def _drop_output() -> None:
    """Let the flush at the end of the interpreter succeed: the failure has been reported."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)


def _about(plugin: str) -> int:
    from cni_common.spec.names import SUPPORTED_VERSIONS, VERSION

    # nerdctl and Nomad read a version off this line, and decide by it what the plugin can do.
    _log(f"CNI {plugin} plugin v{_REFERENCE_VERSION}+pycni.{VERSION}")
    _log(f"CNI protocol versions supported: {', '.join(SUPPORTED_VERSIONS)}")
    return 0


def _complete_standard_streams() -> bool:
    """Open /dev/null for each closed descriptor of 0 to 2: the next open() would reuse it.

    Return whether stdout was open.
    """
    closed = []
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            closed.append(os.open(os.devnull, os.O_RDWR))
    return 1 not in closed


def _write(data: bytes) -> bool:
    try:
        write_all(1, data)
    except OSError as error:
        _log(f"cannot write to stdout: {error.strerror}")
        return False
    return True


def _terminated(error: BaseException, stdin: bytes) -> bytes:
    extent = " as far as possible" if hasattr(error, "__notes__") else ""
    msg = f"terminated by a signal; its changes are undone{extent}, try again later"
    return _failure(11, msg, error, stdin)


def _given_up(command: str, error: BaseException, stdin: bytes) -> bytes:
    from cni_common.serve.protocol import given_up, seconds_of

    return given_up(command, seconds_of(command), error, stdin).stdout


def _failure(code: int, msg: str, error: BaseException | None = None, stdin: bytes = b"") -> bytes:
    from cni_common.serve.protocol import failure

    return failure(code, msg, error, stdin).stdout


def _log(text: str) -> None:
    say(2, text)


def _raise_on_signals() -> None:
    import signal

    def terminate(number: int, _frame: object) -> NoReturn:
        _ignore_signals()  # a second signal must not interrupt the undo
        signal.signal(signal.SIGALRM, end)
        terminated = _Terminated()
        terminated.is_late = number == signal.SIGALRM
        raise terminated

    def end(_number: int, _frame: object) -> NoReturn:
        _write(_failure(11, "given up, and its changes were not undone in time; DEL removes them"))
        os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, terminate)


def _ignore_signals() -> None:
    import signal

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _limit_time(seconds: float, undo_seconds: float = 0.0) -> None:
    """Have SIGALRM come after some seconds, and again and again after more; 0: not any more."""
    import signal

    signal.setitimer(signal.ITIMER_REAL, seconds, undo_seconds)
