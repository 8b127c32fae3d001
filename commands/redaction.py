"""Redacts a bug report: nothing leaves the node that is secret, or that this module does not know.

Of a configuration only the keys of its plugin's SCHEMA stay. All other values are redacted, also
where one of them occurs elsewhere.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from cni_common.spec import result, wire
from cni_common.spec.errors import CNIError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from cni_common.spec.wire import JsonObject

    SchemaOf = Callable[[str], Mapping[str, Any] | None]  # of a plugin, None for another vendor's

MARK = "(redacted)"
_SECRET_LENGTH_MIN = 6  # characters: a shorter value would be found everywhere
_OF_LIST = ("cniVersion", "cniVersions", "name", "disableCheck", "disableGC")
_OF_ANY = ("cniVersion", "name", "type")
_OLD_IP = result.OLD_IP_SCHEMA
_OF_RESULT = {"properties": {**result.SCHEMA["properties"], "ip4": _OLD_IP, "ip6": _OLD_IP}}
_ARGS = (
    *("IgnoreUnknown", "K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID"),
    *("K8S_POD_INFRA_CONTAINER_ID", "IP", "MAC"),
)
# Text before it in a name is not looked at: that would take time in proportion to its length.
_KEY = (
    r"(?:authorization|token|secret|passw(?:or)?d|passphrase|(?:api|access|private|pre-?shared)"
    r"[-_ ]?key|credential|cookie|\bpass\b|\bpsk\b)[\w-]{0,40}"
)
_SIGN = r"\\*[\"']?\s*[:=]\s*"
_MARKED = r"\(redacted\)"
_BLOCK = re.compile(r"-----BEGIN ([A-Z ]*)-----.*?-----END \1-----", re.DOTALL)
# A line without any of these has nothing for the patterns, which take a hundred times as long.
_HINTS = (
    *("authorization", "token", "secret", "pass", "key", "credential", "cookie", "psk"),
    *("bearer", "basic", "://", "eyj", "gh", "glpat", "xox", "akia"),
)
_PATTERNS = (
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), MARK),  # a JSON Web Token
    (re.compile(r"\b(?:gh[pousr]_|glpat-|xox[abp]-|AKIA)[\w-]{12,}"), MARK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {MARK}"),
    (re.compile(r"(://)[^\s/\"'<>]+@"), rf"\1{MARK}@"),
    # After such a word a quoted text, with or without backslashes before the quotes, or a word.
    (re.compile(rf"(?i)({_KEY}{_SIGN}(\\*[\"']))(?!{_MARKED}).{{1,4096}}?\2"), rf"\1{MARK}\2"),
    (re.compile(rf"(?i)({_KEY}{_SIGN})(?!\\*[\"']|{_MARKED})[^\s\"',;&]+"), rf"\1{MARK}"),
)
_OF_OPTION = re.compile(rf"(?i)({_KEY}[ \t]+)(?!{_MARKED})([^\s-]\S*)")
_OPTION = re.compile(r"(?<!\S)--?[\w-]*\Z")
_OPTION_MAX = 40  # characters


class Redactor:
    """Redacts, and remembers what it has redacted."""

    def __init__(self, schema_of: SchemaOf) -> None:
        self._schema_of = schema_of
        self._secrets: set[str] = set()
        self.count = 0  # of redacted values

    def configuration(self, data: bytes) -> str:
        """Return a file with a plugin's configuration, or a list of plugins, as JSON."""
        try:
            config = dict(wire.decode(data))
        except CNIError as error:
            return f"{len(data)} bytes that are no JSON object, left out: {error.msg}\n"
        return json.dumps(self._config(config), indent=2) + "\n"

    def _config(self, config: JsonObject) -> JsonObject:
        plugins = config.get("plugins")
        if isinstance(plugins, list):
            kept = {key: config[key] for key in _OF_LIST if key in config}
            hidden = {
                key: self._hidden(value)
                for key, value in config.items()
                if key not in (*_OF_LIST, "plugins")
            }
            entries = [
                self._plugin(one) if isinstance(one, dict) else self._hidden(one) for one in plugins
            ]
            return {**kept, **hidden, "plugins": entries}
        return self._plugin(config)

    def _plugin(self, config: JsonObject) -> JsonObject:
        schema = self._schema_of(str(config.get("type")))
        found: JsonObject = {}
        for key, value in config.items():
            if key == "prevResult" and isinstance(value, dict):
                found[key] = self._kept(value, _OF_RESULT)
            elif key == "ipam" and isinstance(value, dict):
                found[key] = self._ipam(value)
            elif key in _OF_ANY and isinstance(value, str):
                found[key] = value
            else:
                found[key] = self._kept({key: value}, schema or {})[key]
        return found

    def _ipam(self, value: JsonObject) -> Any:
        """Return the part of the IPAM plugin, which has a SCHEMA of its own."""
        schema = self._schema_of(str(value.get("type"))) or {}
        own = schema.get("properties", {}).get("ipam", {})
        kept = self._kept(value, own)
        return {**kept, **({"type": value["type"]} if isinstance(value.get("type"), str) else {})}

    def _kept(self, value: Any, schema: Mapping[str, Any]) -> Any:
        if isinstance(value, dict):
            known, others = schema.get("properties", {}), schema.get("additionalProperties")
            return {
                key: self._kept(one, known[key])
                if key in known
                else self._kept(one, others)
                if isinstance(others, dict)
                else self._hidden(one)
                for key, one in value.items()
            }
        if isinstance(value, list):
            items = schema.get("items")
            return [
                self._kept(one, items) if isinstance(items, dict) else self._hidden(one)
                for one in value
            ]
        return value

    def _hidden(self, value: Any) -> str:
        """Return the mark; remember all that was in the value."""
        self.count += 1
        if isinstance(value, dict):
            for one in value.values():
                self._remember(one)
        self._remember(value)
        return MARK

    def _remember(self, value: Any) -> None:
        if isinstance(value, dict | list):
            for one in value.values() if isinstance(value, dict) else value:
                self._remember(one)
        elif not isinstance(value, bool) and len(str(value)) >= _SECRET_LENGTH_MIN:
            # As it is, and as messages quote it.
            text = str(value)
            self._secrets |= {text, json.dumps(text)[1:-1], repr(text)[1:-1]}

    def record(self, data: bytes) -> str:
        """Return an attachment record, whose lines are JSON; other lines are left out."""
        lines = []
        for number, line in enumerate(data.splitlines(), 1):
            try:
                facts = dict(wire.decode(line))
            except CNIError:
                lines.append(f"line {number} is no JSON object, left out")
                continue
            if isinstance(facts.get("stdin"), str) and facts["stdin"]:
                facts["stdin"] = self.configuration(facts["stdin"].encode())
            if isinstance(facts.get("cni_args"), str):
                facts["cni_args"] = self._args(facts["cni_args"])
            lines.append(json.dumps(facts))
        return "".join(f"{line}\n" for line in lines)

    def _args(self, text: str) -> str:
        pairs = (pair.partition("=") for pair in text.split(";") if pair)
        return ";".join(
            f"{key}={value if key in _ARGS else self._hidden(value)}" for key, _, value in pairs
        )

    def text(self, text: str) -> str:
        """Return any text without what was redacted elsewhere, and without what looks secret."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, MARK)
        text, count = _BLOCK.subn(MARK, text)
        self.count += count
        return "".join(map(self._line, text.splitlines(keepends=True)))

    def _line(self, line: str) -> str:
        lowered = line.lower()
        if not any(hint in lowered for hint in _HINTS):
            return line
        for pattern, mark in _PATTERNS:
            line, count = pattern.subn(mark, line)
            self.count += count
        return _OF_OPTION.sub(self._argument, line)

    def _argument(self, found: re.Match[str]) -> str:
        """Redact the word after an option such as --password."""
        before = found.string[max(found.start() - _OPTION_MAX, 0) : found.start()]
        if not _OPTION.search(before):
            return found[0]
        self.count += 1
        return f"{found[1]}{MARK}"

    def texts(self, found: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return names and texts as `text` has them."""
        return [(self.text(name), self.text(text)) for name, text in found]
