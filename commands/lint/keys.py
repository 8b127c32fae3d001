"""Keys and values, compared with the SCHEMA of each plugin."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from cni_common.spec import schema, wire
from plugins import TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from cni_common.node.host import Loader
    from cni_common.spec.wire import Json
    from commands.lint.files import Entry, File
    from commands.lint.text import Path

_NEAR = 0.8  # of difflib: one letter of five, two of ten
# Keys of a list; runtimes add keys of their own, so that only a near miss is reported.
_OF_LIST = (
    *("cniVersion", "cniVersions", "name", "disableCheck", "disableGC", "plugins"),
    "loadOnlyInlinedPlugins",
)
_FREE = ("args", "prevResult")  # their content is the runtime's
_COMMENTS = ("_", "$", "/", "#")  # how keys begin that people use for notes


def check(file: File, load: Loader) -> None:
    """Report unknown keys and types and wrong values of all plugins in a file."""
    if file.is_list:
        _check_list(file, load)
    for one in file.entries:
        if one.type:
            _check_type(one, ("type",), one.type)
        if one.ipam:
            _check_type(one, ("ipam", "type"), one.ipam)
        whole = schema_of(one, load)
        if whole:
            _check_keys(one, one.given, _Known(whole, whole), ())
            _check_values(one, whole)
            _check_capabilities(one, whole)


def schema_of(entry: Entry, load: Loader) -> Json:
    """Return the schema of a plugin together with its IPAM plugin's, {} for another vendor's."""
    plugin, ipam = load(entry.type), load(entry.ipam)
    if plugin is None:
        return {}
    if ipam is not None:
        return _merged(plugin.SCHEMA, ipam.SCHEMA)
    if not entry.ipam:
        return plugin.SCHEMA
    others: Json = {"ipam": {"type": "object"}, "runtimeConfig": {"type": "object"}}
    return {**plugin.SCHEMA, "properties": {**plugin.SCHEMA["properties"], **others}}


def _merged(one: Json, other: Json) -> Json:
    properties: dict[str, Any] = dict(one.get("properties", {}))
    for key, inner in other.get("properties", {}).items():
        properties[key] = _merged(properties[key], inner) if key in properties else inner
    return {**other, **one, "properties": properties} if properties else one


def _check_type(entry: Entry, path: Path, name: str) -> None:
    near = "" if name in TYPES else _near(name, TYPES)
    if near:
        entry.report(
            "L306",
            path,
            f'there is no plugin "{name}" here: did you mean "{near}"? Another vendor\'s plugin of'
            " that name is not looked at",
        )


def _check_list(file: File, load: Loader) -> None:
    wholes = {one.type: schema_of(one, load).get("properties", {}) for one in file.entries}
    for key in file.config:
        near = _near(key, _OF_LIST)
        owner = next((type for type, known in wholes.items() if key in known), "")
        if near:
            file.report("L301", (key,), _meant(key, near), key=True)
        elif owner and key not in (*_OF_LIST, *_FREE):
            text = f'"{key}" stands beside "plugins", where it is ignored: it belongs to {owner}'
            file.report("L301", (key,), text, key=True)


@dataclass(frozen=True, slots=True)
class _Known:
    """An object's schema, and that of the plugin's whole configuration."""

    shape: Json
    whole: Json

    @property
    def names(self) -> Mapping[str, Json]:
        found: Mapping[str, Json] = self.shape.get("properties", {})
        return found

    def member(self, name: str) -> _Known:
        return _Known(self.names[name], self.whole)

    @property
    def items(self) -> _Known:
        return _Known(self.shape.get("items", {}), self.whole)

    def place_of(self, key: str) -> str:
        """Return where in the configuration there is such a key, in words; "" for nowhere."""
        top = self.whole["properties"]
        if key in top and self.shape is not self.whole:
            return 'beside "type"'
        inside = (name for name in top if key in top[name].get("properties", {}))
        return next((f'into "{name}"' for name in inside if name not in _FREE), "")


def _check_keys(entry: Entry, value: Json, known: _Known, path: Path) -> None:
    for key, inner in value.items():
        name = next((one for one in known.names if one.casefold() == key.casefold()), "")
        where = (*path, key)
        if (not name and key.startswith(_COMMENTS)) or (key in _FREE and not path):
            continue
        if not name:
            if "properties" in known.shape:
                _report_key(entry, where, known)
        elif isinstance(inner, dict):
            _check_keys(entry, inner, known.member(name), where)
        elif isinstance(inner, list):
            _check_items(entry, inner, known.member(name).items, where)


def _check_items(entry: Entry, items: list[Any], known: _Known, path: Path) -> None:
    for index, one in enumerate(items):
        if isinstance(one, dict):
            _check_keys(entry, one, known, (*path, index))
        elif isinstance(one, list):
            _check_items(entry, one, known.items, (*path, index))


def _report_key(entry: Entry, path: Path, known: _Known) -> None:
    key = str(path[-1])
    if near := _near(key, known.names):
        entry.report("L301", path, _meant(key, near), key=True)
        return
    where = ".".join(str(step) for step in path[:-1] if isinstance(step, str))
    owner = f'"{where}" of {entry.type}' if where else entry.type
    if place := known.place_of(key):
        text = f'{owner} has no key "{key}" and ignores it: it belongs {place}'
        entry.report("L301", path, text, key=True)
        return
    text = f'{owner} has no key "{key}" and ignores it: leave it out'
    entry.report("L302", path, text, key=True)


def _check_values(entry: Entry, whole: Json) -> None:
    for path, text in schema.faults(wire.fold(entry.given, whole), whole):
        entry.report("L303", path, text)


def _check_capabilities(entry: Entry, whole: Json) -> None:
    given = entry.given.get("capabilities", {})
    shape = whole["properties"].get("runtimeConfig", {"properties": {}})
    if not isinstance(given, dict) or "properties" not in shape:
        return
    known = shape["properties"]
    written = entry.given.get("runtimeConfig")
    for key in written if isinstance(written, dict) else ():
        if key in known and given.get(key) is not True:
            entry.report(
                "L307",
                ("runtimeConfig", key),
                f'each container gets this value, and none of its own: add "capabilities":'
                f' {{"{key}": true}}, and the runtime gives one',
                key=True,
            )
    for key, wanted in given.items():
        if wanted is True and key not in known:
            near = _near(key, known)
            hint = f': did you mean "{near}"?' if near else ": leave it out"
            entry.report(
                "L305",
                ("capabilities", key),
                f'{entry.type} makes no use of the capability "{key}"{hint}',
                key=True,
            )


def _near(word: str, known: Iterable[str]) -> str:
    """Return the one of `known` that was probably meant, "" if there is none or `word` is one."""
    lower: Callable[[str], str] = str.casefold
    by_lower = {lower(one): one for one in known}
    if lower(word) in by_lower:
        return ""
    plain = lower(word).replace("_", "").replace("-", "")
    found = next((name for one, name in by_lower.items() if one.replace("-", "") == plain), "")
    near = get_close_matches(lower(word), by_lower, 1, _NEAR)
    return found or (by_lower[near[0]] if near else "")


def _meant(key: str, near: str) -> str:
    return f'there is no key "{key}", and it is ignored: did you mean "{near}"?'
