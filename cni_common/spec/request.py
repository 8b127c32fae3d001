"""The request to a plugin: its command, variables and configuration (SPEC.md sections 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cni_common.spec import schema, wire
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import FAMILIES, OLDEST_VERSION, check_identifier, check_ifname
from cni_common.spec.result import DNS_SCHEMA, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from cni_common.spec.wire import Json


class Command:
    """The values of CNI_COMMAND."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


COMMANDS = frozenset(name for name in vars(Command) if name.isupper())
SINCE = {Command.CHECK: "0.4.0", Command.GC: "1.1.0", Command.STATUS: "1.1.0"}


def _check_containerid(value: str) -> None:
    check_identifier(value, "CNI_CONTAINERID", Code.INVALID_ENVIRONMENT)


def _check_cni_ifname(value: str) -> None:
    check_ifname(value, "CNI_IFNAME", Code.INVALID_ENVIRONMENT)


_ATTACHED = frozenset({Command.ADD, Command.CHECK, Command.DEL})

# Variable, the commands that need it, its syntax check; in the order of the reference's reports
# (pkg/skel).
VARIABLES: Sequence[tuple[str, frozenset[str], Callable[[str], None] | None]] = (
    ("CNI_CONTAINERID", _ATTACHED, _check_containerid),
    ("CNI_NETNS", frozenset({Command.ADD, Command.CHECK}), None),
    ("CNI_IFNAME", _ATTACHED, _check_cni_ifname),
    ("CNI_PATH", _ATTACHED | {Command.GC, Command.STATUS}, None),
)


@dataclass(frozen=True, slots=True, order=True)
class Attachment:
    """One interface of one container on the network of the request."""

    containerid: str
    ifname: str


@dataclass(frozen=True, slots=True)
class Request:
    """One invocation of a plugin, with variables and protocol keys checked."""

    command: str  # one of Command
    containerid: str
    netns: str
    ifname: str
    path: Sequence[str]
    config: Json
    environ: Mapping[str, str]  # verbatim, for delegates
    stdin: bytes  # verbatim, for delegates
    given: Json  # `config` before a plugin's SCHEMA was applied to it

    @classmethod
    def parse(cls, environ: Mapping[str, str], stdin: bytes) -> Self:
        """Return the request. Raises CNIError 4 for a variable, 6 or 7 for the JSON on stdin."""
        command = environ.get("CNI_COMMAND", "")
        _check_variables(environ, command)
        config = wire.fold(wire.decode(stdin), PROTOCOL_SCHEMA)
        _check_name(config)
        if command not in COMMANDS:
            raise CNIError(Code.INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {command}")
        _string(config, "cniVersion")
        if command == Command.GC:
            # With the rest of a damaged list GC would remove attachments in use.
            lists = {key: config[key] for key in _ATTACHMENT_KEYS if key in config}
            schema.validate(lists, PROTOCOL_SCHEMA)
        return cls(
            command,
            environ.get("CNI_CONTAINERID", ""),
            environ.get("CNI_NETNS", ""),
            environ.get("CNI_IFNAME", ""),
            [entry for entry in environ.get("CNI_PATH", "").split(":") if entry],
            config,
            environ,
            stdin,
            config,
        )

    def delegated(self, command: str, stdin: bytes) -> Self:
        """Return the request for a delegate in this process. Raises CNIError as `parse` does."""
        environ = {**self.environ, "CNI_COMMAND": command}
        if stdin != self.stdin:
            return self.parse(environ, stdin)
        return replace(self, command=command, environ=environ, config=self.given)

    @property
    def network(self) -> str:
        """The network's name."""
        return str(self.config["name"])

    @property
    def attachment(self) -> Attachment:
        """The attachment of an ADD, CHECK or DEL."""
        return Attachment(self.containerid, self.ifname)

    @property
    def cni_version(self) -> str:
        """The spec version of the configuration, never empty."""
        return self.config.get("cniVersion") or OLDEST_VERSION

    @property
    def prev_result(self) -> Result | None:
        """The prevResult that the runtime passed, None if absent. Raises CNIError 7."""
        data = self.config.get("prevResult")
        if data is None:
            return None
        try:
            check_same_family(data.get("cniVersion") or self.cni_version, self.cni_version)
            return Result.parse(data, self.cni_version)
        except CNIError as error:
            raise CNIError(Code.INVALID_CONFIG, f"prevResult: {error.msg}", error.details) from None

    def require_prev_result(self) -> Result:
        """Return `prev_result`, which chained plugins and CHECK require.

        Raises CNIError 7 if it is missing or invalid.
        """
        result = self.prev_result
        if result is None:
            reason = (
                "the runtime must pass the result of ADD to CHECK"
                if self.environ.get("CNI_COMMAND") == Command.CHECK
                else f"{self.config.get('type')} comes after the plugin that makes the interface"
            )
            raise CNIError(Code.INVALID_CONFIG, f"Required prevResult missing: {reason}")
        return result

    def cni_args(self, known: frozenset[str]) -> dict[str, str]:
        """Return the keys of CNI_ARGS that are in `known`, as the reference's types.LoadArgs does.

        Raises CNIError 4 for a malformed pair, and for any other key unless IgnoreUnknown is set.
        """
        text = self.environ.get("CNI_ARGS", "")
        pairs: dict[str, str] = {}
        for pair in text.split(";") if text else ():
            key, equals, value = pair.partition("=")
            if not equals or "=" in value:
                raise CNIError(
                    Code.INVALID_ENVIRONMENT,
                    f'CNI_ARGS: invalid pair "{pair}", expected KEY=VALUE pairs separated by ";"',
                )
            pairs[key] = value
        ignore = pairs.pop("IgnoreUnknown", "0").lower()
        if ignore not in ("1", "true", "0", "false"):
            raise CNIError(
                Code.INVALID_ENVIRONMENT, f"CNI_ARGS: IgnoreUnknown={ignore} is not a boolean"
            )
        unknown = sorted(pairs.keys() - known)
        if unknown and ignore in ("0", "false"):
            raise CNIError(
                Code.INVALID_ENVIRONMENT,
                f"CNI_ARGS: unknown keys {', '.join(unknown)}; known are"
                f" {', '.join(sorted(known)) or 'none'}, add IgnoreUnknown=1 to pass others",
            )
        return {key: value for key, value in pairs.items() if key in known}

    @property
    def valid_attachments(self) -> frozenset[Attachment] | None:
        """The attachments that GC must keep; None for no list, which is not an empty list."""
        for key in _ATTACHMENT_KEYS:
            if key in self.config:
                return frozenset(
                    Attachment(entry.get("containerID", ""), entry.get("ifname", ""))
                    for entry in self.config[key]
                )
        return None


_ATTACHMENT_KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")  # new and old spelling
_ATTACHMENTS: Json = {
    "type": "array",
    "description": "Valid attachments, which GC keeps; filled in by the runtime.",
    "items": {
        "type": "object",
        "properties": {
            "containerID": {"type": "string", "description": "Id of a container."},
            "ifname": {"type": "string", "description": "Name of its interface."},
        },
    },
}
# The keys of every configuration on stdin (SPEC.md sections 1 and 3); each SCHEMA contains them.
PROTOCOL_PROPERTIES: Json = {
    "cniVersion": {"type": "string", "description": "Version of the CNI specification."},
    "name": {"type": "string", "description": "Name of the network."},
    "type": {"type": "string", "description": "File name of the plugin's executable."},
    "capabilities": {
        "type": "object",
        "additionalProperties": {"type": "boolean"},
        "description": "Capabilities; the runtime fills in their values as runtimeConfig.",
    },
    "dns": {**DNS_SCHEMA, "description": "DNS settings for the container."},
    "prevResult": {
        "type": "object",
        "properties": {
            "cniVersion": {"type": "string", "description": "Version of the result's layout."}
        },
        "description": "Result of the previous plugin.",
    },
    "cni.dev/valid-attachments": _ATTACHMENTS,
    "cni.dev/attachments": _ATTACHMENTS,
}
PROTOCOL_SCHEMA: Json = {"type": "object", "properties": PROTOCOL_PROPERTIES}


def check_same_family(version: str, config_version: str) -> None:
    """Raise CNIError 7 if a prevResult of `version` is of another family than `config_version`."""
    for family in FAMILIES:
        if config_version in family and version not in family:
            raise CNIError(
                Code.INVALID_CONFIG,
                f'cniVersion "{version}" does not go with the configuration\'s {config_version};'
                f" expected one of {', '.join(family)}",
            )


def _check_variables(environ: Mapping[str, str], command: str) -> None:
    missing = []
    for name, commands, check in VARIABLES:
        if command not in commands:
            continue
        value = environ.get(name, "")
        if not value:
            missing.append(name)
        elif check:
            check(value)
    if missing:
        raise CNIError(
            Code.INVALID_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing"
        )


def _check_name(config: Json) -> None:
    name = _string(config, "name")
    if not name:
        raise CNIError(Code.INVALID_CONFIG, "missing network name")
    check_identifier(name, "network name", Code.INVALID_CONFIG)


def _string(config: Json, key: str) -> str:
    value = config.get(key, "")
    if not isinstance(value, str):
        raise CNIError(
            Code.DECODING_FAILURE,
            f'"{key}" in the configuration must be a string, not {wire.type_name(value)}',
        )
    return value
