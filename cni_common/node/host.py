"""Host: access of a plugin to its node: namespaces, records, delegates."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

from cni_common.kernel.netns import OWN, NetNS
from cni_common.node import spans
from cni_common.node.record import Records
from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import Command, Request
from cni_common.spec.result import Result
from cni_common.spec.steps import CALL, EXEC, LEASE, now
from cni_common.spec.undo import Undo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Protocol, Self

    from cni_common.node.lifecycle import Lifecycle
    from cni_common.spec.wire import Json

    class Plugin(Protocol):
        """The functions of a plugin's module. Each raises CNIError or OSError."""

        @property
        def SCHEMA(self) -> Json:  # noqa: N802 - a module constant satisfies it
            """Every key that the plugin reads, as a JSON Schema."""

        def add(self, req: Request, host: Host, undo: Undo) -> Result:
            """Attach; push on `undo` what takes each step back."""

        def delete(self, req: Request, host: Host) -> None:
            """Detach, with all that is still known; succeed when nothing is left to do."""

        def check(self, req: Request, host: Host) -> Iterable[CNIError]:
            """Yield an error for each difference from the result of ADD."""

        def gc(self, req: Request, host: Host) -> None:
            """Remove what belongs to no attachment of `req.valid_attachments`."""

        def status(self, req: Request, host: Host) -> None:
            """Raise CNIError 50 or 51 when an ADD would fail now. Never waits."""

        def lifecycle(self) -> Lifecycle | None:
            """Return what an attachment consists of, None when it has no record."""

    Loader = Callable[[str], Plugin | None]
    Execute = Callable[[str, Request, "Host", Undo], Result | None]

STATE_DIR = "/run/pycni"
# Seconds that a delegate may take: below the deadlines at which runtimes give up on us, so that
# there is time left to take an ADD back and to say why.
DELEGATE_SECONDS = {
    Command.ADD: 80,
    Command.DEL: 40,
    Command.CHECK: 40,
    Command.GC: 40,
    Command.STATUS: 0.8,
    Command.VERSION: 5,
}
_BUSY_TRIES, _BUSY_PAUSE = 10, 0.1


class Host:
    """The runtime's side of one request; everything opened through it is closed with it."""

    def __init__(  # noqa: PLR0913 - a request's collaborators, most by keyword
        self,
        load: Loader,
        executable: str,
        log: Callable[[str], object],
        given: Mapping[str, int] | None = None,
        *,
        execute: Execute,
        build: str = "",
        guarded: bool = False,
        own: NetNS | None = None,
        link_group: int = 0,
        is_ending: bool = False,
        state_dir: str = STATE_DIR,
    ) -> None:
        """`execute` runs a delegate that is ours, found by `load`.

        A file is ours if it is a launcher of `build`, by default that of this program. Sources have
        none: there it is `executable` itself. `guarded`: CNI_PATH is a record's, so a plugin of
        others is executed only where root alone can have put it.

        `given` holds descriptors of namespaces that the caller has opened, by their path.

        `own` is the process's own namespace where that stays open for the next request. Interfaces
        of the host are deleted in the IFLA_GROUP `link_group`; 0 deletes each by its own request.
        `is_ending`: the process ends after this request.
        """
        self.load = load
        self._execute = execute
        self.log = log
        self.state_dir = state_dir
        self.records = Records(state_dir)
        self.executable = executable
        self._build = build
        self._guarded = guarded
        self._given = given or {}
        self._own = own
        self._link_group = link_group
        self._is_ending = is_ending
        self.defer: Callable[[Callable[[], None]], object] | None = None  # takes what may wait
        self._opened: dict[str, NetNS] = {}
        # By a plugin's name and CNI_PATH: its file, and its type if it is ours.
        self._found: dict[tuple[str, ...], tuple[str, str]] = {}
        self._delegates: list[str] = []  # ours that are at work, the innermost last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.records.close()
        for netns in self._opened.values():
            netns.close()
        self._opened.clear()
        if self._own:
            self._own.tidy()

    @cached_property
    def netns(self) -> NetNS:
        """The namespace in which the runtime lives."""
        return self.open_netns(OWN)

    def open_netns(self, path: str) -> NetNS:
        """Return the namespace at `path`. Raises CNIError 8."""
        if self._own and path == OWN:
            return self._own
        if path not in self._opened:
            given = self._given.get(path, -1)
            self._opened[path] = self.make_netns(path, os.dup(given) if given >= 0 else -1)
        return self._opened[path]

    def find_netns(self, path: str) -> NetNS | None:
        """Return the namespace at `path`, None when it is gone or `path` empty, as DEL has it."""
        if not path:
            return None
        try:
            return self.open_netns(path)
        except CNIError as error:
            self.log(f"DEL goes on without the namespace: {error.msg}")
            return None

    def identity_of(self, path: str) -> str:
        """Return the identity of the namespace at `path`, "" when there is none."""
        try:
            return self.open_netns(path).identity
        except CNIError:
            return ""

    def delete_link(self, netns: NetNS, name: str, mac: str) -> bool:
        """Delete the interface `name`; return False if it is gone, or another one has that name.

        Raises NetlinkError.
        """
        found = netns.netlink.identify(name)
        return found is not None and found[1] == mac and self.delete_link_at(netns, found[0])

    def delete_link_at(self, netns: NetNS, index: int) -> bool:
        """Delete the interface with this index; return False if it is gone.

        Interfaces of the host that several workers delete at the same time go by one request.
        Raises NetlinkError.
        """
        from cni_common.kernel.link_deletion import SENDER, delete_link
        from cni_common.node.plugin_files import program_of_bundle

        group = self._link_group if netns is self.netns else 0
        sender = program_of_bundle(SENDER) if self._is_ending else ""
        return delete_link(netns, index, group, sender=sender)

    def make_netns(self, path: str, fd: int) -> NetNS:
        """Return a new handle; tests make kernel calls fail here."""
        return NetNS(path, fd)

    def leave_trace(
        self, plugin: str, environ: Mapping[str, str], network: str, outcome: tuple[int, str]
    ) -> None:
        """Note for `pycni trace` how the call went that ends now. Never fails.

        An engine writes it when the runtime has its answer: see `defer`.
        """
        by = "engine" if self._own else "process"
        write = spans.leave(self.state_dir, plugin, environ, network, outcome=outcome, by=by)
        if self.defer:
            self.defer(write)
        else:
            write()

    def log_traceback(self, error: BaseException) -> None:
        """Write the traceback of an unexpected error to the log."""
        from traceback import format_exception  # never needed when all is well

        self.log("".join(format_exception(error)).rstrip())

    def delegate(
        self,
        type: str,
        req: Request,
        command: str,
        *,
        undo: Callable[[str, Callable[[], object]], object] | None = None,
        stdin: bytes | None = None,
    ) -> Result | None:
        """Run `command` of another plugin with the environment of `req`, and its stdin or `stdin`.

        In this process when CNI_PATH leads to our own executable, else by exec: another
        implementation that comes first in CNI_PATH is used. `undo` gets the DEL that takes an ADD
        back, with its name: as soon as another implementation runs, since SPEC.md section 4 asks
        for a DEL also when its ADD fails. Ours takes its own failures back: `undo` gets the DEL
        when it has succeeded, and a refusal costs no living container its address.
        Raises the delegate's CNIError, or 999 when it does not give one; 50 when there is no such
        plugin.
        """
        stdin = req.stdin if stdin is None else stdin
        path, own_type = self._find(type, req.path)

        def push_deletion() -> None:
            if undo is not None:
                undo(f"the ADD of '{type}'", lambda: self.delegate(type, req, Command.DEL))

        if own_type:
            return self._run_here(own_type, req.delegated(command, stdin), push_deletion)
        environ = {**req.environ, **spans.handed_on(req.environ), "CNI_COMMAND": command}
        if self._guarded:
            self._refuse_other_program(path, environ)
        output = self._run(path, environ, stdin, push_deletion)
        if command != Command.ADD:
            return None
        return Result.parse(output or {}, req.cni_version)

    def _run_here(self, type: str, req: Request, on_success: Callable[[], object]) -> Result | None:
        if type in self._delegates:
            raise CNIError(
                Code.INVALID_CONFIG,
                f"'{type}' delegates to itself: \"ipam\" must name an IPAM plugin",
            )
        self._delegates.append(type)
        since = now()
        try:
            with Undo() as undo:
                result = self._execute(type, req, self, undo)
                on_success()  # in here: a signal that comes after it finds the address on one stack
            return result
        finally:
            self._delegates.pop()
            CALL.note(LEASE, since)

    def is_ours(self, type: str, path: Sequence[str]) -> bool:
        """Tell whether CNI_PATH leads under that name to a plugin of ours. Raises as `delegate`."""
        return bool(self._find(type, path)[1])

    def _find(self, type: str, path: Sequence[str]) -> tuple[str, str]:
        """Return where the plugin is, and its type if it is ours; one request looks once."""
        key = (type, *path)
        if key not in self._found:
            from cni_common.node.plugin_files import find_plugin

            place = find_plugin(type, path)
            self._found[key] = (place, self._own_type(place, type))
        return self._found[key]

    def _own_type(self, path: str, name: str) -> str:
        """Return the type of our plugin at `path`, called `name` in the configuration, or ""."""
        from cni_common.node.plugin_files import own_build, type_of

        build = self._build or own_build()
        try:
            if build:
                type = type_of(path, build)
            else:  # during development one file has all names
                type = name if os.path.samefile(path, self.executable) else ""
        except OSError:
            return ""
        return type if type and self.load(type) is not None else ""

    def _refuse_other_program(self, path: str, environ: Mapping[str, str]) -> None:
        """Raise CNIError when it is no plugin: a shell would take a record's stdin for commands."""
        answer = self._run(path, {**environ, "CNI_COMMAND": Command.VERSION}, b"", lambda: None)
        if not isinstance((answer or {}).get("supportedVersions"), list):
            raise CNIError(Code.INTERNAL, f"'{path}', which a record names, is no CNI plugin")

    def _run(
        self,
        path: str,
        environ: Mapping[str, str],
        stdin: bytes,
        push_deletion: Callable[[], object],
    ) -> wire.Json | None:
        import subprocess

        seconds, since = DELEGATE_SECONDS[environ["CNI_COMMAND"]], now()
        started: list[subprocess.Popen[bytes]] = []

        def start() -> None:  # in a thread that no signal interrupts
            started.append(_start(path, environ, guarded=self._guarded))
            push_deletion()

        try:
            self.netns.run(start)
            process = started[0]
            stdout, stderr = process.communicate(stdin, timeout=seconds)
        except BaseException as error:  # SIGTERM's too: no other process would end it
            for process in started:
                _kill(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CNIError(
                    Code.INTERNAL,
                    f"plugin '{path}' did not answer {environ['CNI_COMMAND']} within {seconds:g} s"
                    " and was killed",
                ) from None
            raise
        finally:
            CALL.note(EXEC, since)
        complaint = stderr.decode("utf-8", "replace").strip()
        if complaint:
            self.log(f"{path}: {complaint}")
        if process.returncode:
            raise _failure(path, process.returncode, stdout, complaint)
        if not stdout.strip():
            return None
        return _reply(path, stdout)


def _start(path: str, environ: Mapping[str, str], *, guarded: bool) -> subprocess.Popen[bytes]:
    """Start a delegate; if `guarded`, by a descriptor of a file that root alone can change."""
    if not guarded:
        return _try_to_start(path, path, environ)
    from cni_common.node.plugin_files import open_guarded

    try:
        fd = open_guarded(path)
    except OSError as error:
        raise CNIError(
            Code.INTERNAL,
            f"does not start '{path}', which a record names: {error.strerror}:"
            f" '{error.filename}'; make it root's alone, or have the runtime delete the container",
        ) from None
    try:
        return _try_to_start(path, f"/proc/self/fd/{fd}", environ, fd)
    finally:
        os.close(fd)


def _try_to_start(
    path: str, file: str, environ: Mapping[str, str], *descriptors: int
) -> subprocess.Popen[bytes]:
    import errno
    import subprocess
    import time

    for attempt in range(_BUSY_TRIES):
        try:
            return subprocess.Popen(  # no shell; the path comes from CNI_PATH
                [path],
                executable=file,
                pass_fds=descriptors,  # a script's interpreter opens the file once more
                env=dict(environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            # Another program, such as an installer, is writing the file.
            if error.errno != errno.ETXTBSY or attempt == _BUSY_TRIES - 1:
                raise CNIError(
                    Code.INTERNAL, f"cannot start plugin '{path}': {error.strerror}"
                ) from None
        time.sleep(_BUSY_PAUSE)
    raise AssertionError  # pragma: no cover - the loop returns or raises


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a delegate and its children, which may outlive it and hold its pipes."""
    import signal
    from contextlib import suppress

    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()
    process.wait()


def _failure(path: str, status: int, stdout: bytes, complaint: str) -> CNIError:
    """Return a delegate's own error, or one that quotes what it left instead."""
    try:
        error = wire.decode(stdout)
        if isinstance(error.get("code"), int) and isinstance(error.get("msg"), str):
            return CNIError(error["code"], error["msg"], str(error.get("details", "")))
    except CNIError:
        pass
    said = stdout.decode("utf-8", "replace").strip() or complaint or "it said nothing"
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return CNIError(Code.INTERNAL, f"plugin '{path}' failed with {how}: {said[:500]}")


def _reply(path: str, stdout: bytes) -> wire.Json:
    try:
        return wire.decode(stdout)
    except CNIError:
        said = stdout[:200].decode("utf-8", "replace")
        raise CNIError(
            Code.DECODING_FAILURE, f"plugin '{path}' did not print a JSON object but: {said}"
        ) from None


if TYPE_CHECKING:
    import subprocess
