"""The path of every invocation, one-shot or by the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cni_common.kernel.netns import OWN
from cni_common.spec import schema, wire
from cni_common.spec.errors import CNIError, Code, refuse
from cni_common.spec.names import CURRENT_VERSION, FAMILIES, SUPPORTED_VERSIONS, version_tuple
from cni_common.spec.request import SINCE, Command, Request
from cni_common.spec.result import Result
from cni_common.spec.steps import CALL, PARSE, now
from cni_common.spec.undo import Undo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cni_common.node.host import Host, Plugin
    from cni_common.spec.wire import Json


_TEXT_MAX = 4000  # characters of a message or its details: it may quote what it was given
# Until a request is given up: less than runtimes wait, so that there is time to take an ADD back.
# containerd waits for STATUS without a limit of its own, and holds a lock meanwhile.
ADD_SECONDS, STATUS_SECONDS, OTHER_SECONDS = 90.0, 1.0, 45.0
UNDO_SECONDS = 30.0  # for taking back what was given up; then the process ends
# Some runtimes treat a DEL error with one of these phrases as success, and do not retry.
_DISCARDED_IN_DEL = (("not found", "missing"), ("no such file or directory", "absent (ENOENT)"))


@dataclass(frozen=True, slots=True)
class Reply:
    """The bytes for stdout, and the exit status."""

    stdout: bytes
    exit_code: int


class _NotDeliveredError(Exception):
    """The reply could not be delivered to the runtime."""


def respond(
    type: str,
    environ: Mapping[str, str],
    stdin: bytes,
    host: Host,
    *,
    deliver: Callable[[Reply], bool] = lambda _reply: True,
) -> Reply:
    """Serve one invocation of the plugin `type`, and return the reply.

    Never raises an Exception: a failure becomes a CNI error object (SPEC.md section 5). `deliver`
    writes the reply and returns whether the runtime has it. An undelivered ADD is rolled back,
    since no runtime would ever delete it; then the exit status is 1.
    """
    outcome = _Outcome()
    CALL.begin()
    try:
        return _respond(type, environ, stdin, host, deliver=deliver, outcome=outcome)
    finally:
        host.records.close()  # the next call may need the same record
        if environ.get("CNI_COMMAND") == Command.VERSION:
            CALL.end()
        else:
            told = outcome.code, outcome.msg
            host.leave_trace(type, environ, outcome.network, told)


class _Outcome:
    """The outcome of a call, for its trace."""

    def __init__(self) -> None:
        self.code = int(Code.TRY_AGAIN_LATER)  # unless it comes to an end
        self.msg = "it was given up"
        self.network = ""

    def be(self, code: int, msg: str = "") -> None:
        """Note the end of the call."""
        self.code, self.msg = code, msg


def _respond(
    type: str,
    environ: Mapping[str, str],
    stdin: bytes,
    host: Host,
    *,
    deliver: Callable[[Reply], bool],
    outcome: _Outcome,
) -> Reply:
    command = environ.get("CNI_COMMAND", "")
    reply = Reply(b"", 1)
    req: Request | None = None
    try:
        if command == Command.VERSION:
            versions = {"cniVersion": CURRENT_VERSION, "supportedVersions": SUPPORTED_VERSIONS}
            reply = Reply(wire.encode_line(versions), 0)
            return reply if deliver(reply) else Reply(b"", 1)
        req = Request.parse(environ, stdin)
        outcome.network = req.network
        CALL.note(PARSE, CALL.begun)
        with Undo() as undo:
            reply = _reply_of(execute(type, req, host, undo), req.cni_version)
            if not deliver(reply):
                raise _NotDeliveredError
        outcome.be(0)
    except _NotDeliveredError as error:
        outcome.be(Code.IO_FAILURE, "the answer could not be delivered")
        if command == Command.ADD:
            what = "the result could not be written to stdout: the attachment is taken back"
            host.log("; ".join([what, *_notes(error)]))
        return Reply(b"", 1)
    except Exception as error:  # noqa: BLE001 - the runtime must get an object, never a traceback
        reply = Reply(_refusal(_reason(error), command, stdin, req, host, outcome), 1)
        deliver(reply)
    return reply


def _reason(error: Exception) -> Exception:
    """Return `error`, or a CNIError if a module was to be imported from a bundle that is gone."""
    if not isinstance(error, (ImportError, OSError, ExceptionGroup)):
        return error
    from cni_common.node.plugin_files import is_of_bundle, is_removed

    if not is_of_bundle(error) or not is_removed():
        return error
    told = CNIError(
        Code.TRY_AGAIN_LATER, "pycni was replaced or removed during the call; try again"
    )
    for note in (_describe(error)[1], *_notes(error)):
        told.add_note(note)
    return told


def _refusal(  # noqa: PLR0917 - all that is known by then
    error: Exception, command: str, stdin: bytes, req: Request | None, host: Host, outcome: _Outcome
) -> bytes:
    """Note a failure in the log and for the trace; return its error object."""
    if not _is_expected(error):
        host.log_traceback(error)
    outcome.be(*_describe(error)[:2])
    return _error_object(error, command, stdin, req)


def _reply_of(result: Result | None, version: str) -> Reply:
    if result is None:
        return Reply(b"", 0)
    sort_keys = version in ("1.0.0", "1.1.0")  # as Go prints a generic map
    return Reply(wire.encode(result.to_json(version), sort_keys=sort_keys), 0)


def failure(code: int, msg: str, error: BaseException | None = None, stdin: bytes = b"") -> Reply:
    """Return the reply for a failure outside of `respond`.

    The notes of `error` become details, as does the network that the configuration `stdin` names.
    """
    network = _said_by(stdin, "name")
    details = [*(_notes(error) if error else ()), *([f"network '{network}'"] if network else ())]
    version = _supported(_said_by(stdin, "cniVersion"))
    data: dict[str, object] = {"cniVersion": version, "code": code, "msg": msg}
    if details:
        data["details"] = _one_line("; ".join(details))
    return Reply(wire.encode(data, sort_keys=False), 1)


def seconds_of(
    command: str,
    add: float = ADD_SECONDS,
    status: float = STATUS_SECONDS,
    other: float = OTHER_SECONDS,
) -> float:
    """Return the seconds after which a request is given up: those of its command."""
    return {Command.ADD: add, Command.STATUS: status}.get(command, other)


def given_up(command: str, seconds: float, error: BaseException, stdin: bytes) -> Reply:
    """Return the reply about a request that has taken so long; `error` has notes of its undo."""
    if command == Command.STATUS:
        rest = "a lock, a disk or another program keeps it waiting"
    elif command != Command.ADD:
        rest = "its remaining work is not done, try again"
    elif hasattr(error, "__notes__"):
        rest = "its changes are undone as far as possible, try again"
    else:
        rest = "its changes are undone, try again"
    msg = f"{command} was given up after {seconds:g} s; {rest}"
    return failure(Code.TRY_AGAIN_LATER, msg, error, stdin)


def execute(type: str, req: Request, host: Host, undo: Undo) -> Result | None:
    """Run one command of the plugin `type`, and return the result of an ADD, else None.

    A version older than the result's drops the fields that this version lacks. Everything that can
    be refused without asking the kernel is refused before the plugin acts. An ADD pushes its
    rollback steps onto `undo`. Raises CNIError, OSError and, from DEL and GC, an ExceptionGroup.
    """
    plugin = host.load(type)
    if plugin is None:
        raise CNIError(Code.INVALID_CONFIG, f"'{type}' is not one of this suite's plugins")
    _check_version(req)
    req = replace(req, config=_checked_config(plugin, req, host))
    return _run(plugin, req, host, undo)


def _checked_config(plugin: Plugin, req: Request, host: Host) -> Json:
    """Return the configuration in the spelling of SCHEMA; DEL and GC ignore invalid keys."""
    since = now()
    try:
        return _spelled_config(plugin, req, host)
    finally:
        CALL.note(PARSE, since)


def _spelled_config(plugin: Plugin, req: Request, host: Host) -> Json:
    config = wire.fold(req.config, plugin.SCHEMA)
    if req.command not in (Command.DEL, Command.GC):
        schema.validate(config, plugin.SCHEMA)
        return config
    config, refused = schema.salvage(config, plugin.SCHEMA)
    config.setdefault("name", req.network)
    for text in refused:
        host.log(f"{req.command} goes on without {text}")
    return config


def _run(plugin: Plugin, req: Request, host: Host, undo: Undo) -> Result | None:
    match req.command:
        case Command.ADD:
            _check_not_own_netns(req, host)
            return _as_of(req.cni_version, plugin.add(req, host, undo))
        case Command.DEL:
            plugin.delete(_without_own_netns(req, host), host)
        case Command.CHECK:
            _check_not_own_netns(req, host)
            refuse(plugin.check(req, host))
        case Command.GC:
            plugin.gc(req, host)
        case Command.STATUS:
            plugin.status(req, host)
    return None


def _as_of(version: str, result: Result) -> Result:
    """Return a result without the fields that `version` lacks. Raises CNIError 1."""
    return Result.parse(result.to_json(version), version) if version in FAMILIES[0] else result


def _check_version(req: Request) -> None:
    version, since = req.cni_version, SINCE.get(req.command)
    if since and version_tuple(version) < version_tuple(since):
        raise CNIError(
            Code.INCOMPATIBLE_VERSION,
            f"config version does not allow {req.command}",
            f"cniVersion {version} is older than {since}, which introduced {req.command}",
        )
    if since and version_tuple(version) > version_tuple(SUPPORTED_VERSIONS[-1]):
        raise CNIError(
            Code.INCOMPATIBLE_VERSION,
            f"plugin version does not allow {req.command}",
            f"cniVersion {version} is newer than {SUPPORTED_VERSIONS[-1]}",
        )
    if version not in SUPPORTED_VERSIONS:
        raise CNIError(
            Code.INCOMPATIBLE_VERSION,
            "incompatible CNI versions",
            f'config is "{version}", plugin supports {", ".join(SUPPORTED_VERSIONS)}',
        )


def _check_not_own_netns(req: Request, host: Host) -> None:
    if _is_own_netns(req, host):
        raise CNIError(
            Code.INVALID_NETNS,
            f"CNI_NETNS '{req.netns}' is the network namespace of the plugin itself; set"
            " CNI_NETNS_OVERRIDE=TRUE if that is wanted",
        )


def _without_own_netns(req: Request, host: Host) -> Request:
    # The PID of a dead container may belong to a process on the host by now.
    if req.netns and _is_own_netns(req, host):
        host.log(f"DEL takes '{req.netns}' for gone: it is the plugin's own namespace")
        return replace(req, netns="")
    return req


def _is_own_netns(req: Request, host: Host) -> bool:
    if req.environ.get("CNI_NETNS_OVERRIDE", "").upper() in ("TRUE", "1"):
        return False
    if not req.netns or req.netns == OWN:
        return bool(req.netns)
    try:
        return host.open_netns(req.netns).is_same(host.netns)
    except CNIError:
        return False  # the plugin reports it when it opens the namespace


def _is_expected(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(map(_is_expected, error.exceptions))
    return isinstance(error, CNIError | OSError)


def _error_object(error: Exception, command: str, stdin: bytes, req: Request | None) -> bytes:
    """Return the error as the runtime gets it; `req` is None where it could not be parsed."""
    code, msg, details = _describe(error)
    named = req is None or any(f"'{req.network}'" in text for text in (msg, details))
    network = f"network '{req.network}'" if req and not named else ""
    details = "; ".join(filter(None, map(_one_line, (details, *_notes(error), network))))
    version = str(req.config.get("cniVersion", "")) if req else _said_by(stdin, "cniVersion")
    texts = {"msg": _one_line(msg) or "no message", "details": _one_line(details)}
    if command == Command.DEL:
        texts = {key: _without_discarded_phrases(text) for key, text in texts.items()}
    data = {"cniVersion": _supported(version), "code": int(code)}
    return wire.encode(data | {key: text for key, text in texts.items() if text}, sort_keys=False)


def _describe(error: Exception) -> tuple[int, str, str]:
    if isinstance(error, CNIError):
        return error.code, error.msg, error.details
    if isinstance(error, ExceptionGroup):
        parts = [_describe(part) for part in error.exceptions]
        what = [
            f"{'; '.join(_notes(part))}: {msg}"
            for part, (_, msg, _) in zip(error.exceptions, parts, strict=True)
        ]
        details = "; ".join(text for _, _, text in parts if text)
        return parts[0][0], f"{error.message}: {'; '.join(what)}", details
    if isinstance(error, OSError):
        where = f" '{error.filename}'" if error.filename else ""
        return Code.IO_FAILURE if where else Code.INTERNAL, f"{error.strerror or error}{where}", ""
    return Code.INTERNAL, f"internal error, see the log: {error.__class__.__name__}: {error}", ""


def _notes(error: BaseException) -> list[str]:
    return [str(note) for note in getattr(error, "__notes__", ())]


def _without_discarded_phrases(text: str) -> str:
    import re

    for phrase, other in _DISCARDED_IN_DEL:
        text = re.sub(phrase, other, text, flags=re.IGNORECASE)
    return text


def _one_line(text: str) -> str:
    """Return `text` as one line, without its middle where it is very long."""
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    half = _TEXT_MAX // 2
    return line if len(line) <= _TEXT_MAX else f"{line[:half]} ... {line[-half:]}"


def _said_by(stdin: bytes, key: str) -> str:
    """Return the text of a key of a configuration that may be refused, "" if it cannot be found."""
    try:
        config = wire.decode(stdin)
    except CNIError:
        return ""
    found = wire.fold(config, {"properties": {key: {}}}).get(key)
    return found if isinstance(found, str) else ""


def _supported(version: str) -> str:
    return version if version in SUPPORTED_VERSIONS else CURRENT_VERSION
