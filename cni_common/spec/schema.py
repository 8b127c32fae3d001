"""Validation of a configuration against a SCHEMA, by jsonschema or a fast path.

Importing jsonschema takes longer than a whole ADD. `_plainly_valid` reads the same SCHEMA and can
only accept. Values that it does not accept go to jsonschema, one by one and without their members:
all of a large configuration would take jsonschema a minute.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from jsonschema import ValidationError

    from cni_common.spec.wire import Json

_JSON_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
}
_STRICT = ("integer", "string")
_OF_MEMBERS = ("properties", "items", "additionalProperties")
_NAMED_MAX = 10  # faults that DEL describes
_NEAR_CHARACTERS = 40  # of a value, compared with what could be meant
_REFUSED = object()


def key_schema(type: str, description: str, **more: object) -> Json:
    """Return the schema of one configuration key: its JSON type, a sentence, other keywords."""
    return {"type": type, "description": description, **more}


def one_of(value: str, choices: Sequence[str]) -> str:
    """Return the refusal of a `value` that is not one of `choices`; it names the nearest."""
    from difflib import get_close_matches

    named = [f'"{choice}"' for choice in choices if choice]  # one may be left empty
    known = " or ".join([", ".join(named[:-1]), named[-1]] if named[1:] else named)
    near = get_close_matches(value[:_NEAR_CHARACTERS].lower(), choices, 1)
    hint = f'; did you mean "{near[0]}"?' if near and near[0] and named[1:] else ""
    return f"{_shortened(json.dumps(value, ensure_ascii=False))}, it must be {known}{hint}"


def validate(config: Json, schema: Json) -> None:
    """Raise CNIError 7 that names the first invalid key, unless `config` fits `schema`."""
    if _plainly_valid(config, schema):
        return
    checker = _Checker(named_max=1)
    _sifted({"": config}, {"properties": {"": schema}}, "", checker)
    if checker.refused:
        raise CNIError(Code.INVALID_CONFIG, f"invalid configuration: {checker.refused[0]}")


def salvage(config: Json, schema: Json) -> tuple[dict[str, Any], list[str]]:
    """Return `config` without its invalid parts, and messages about them: DEL must go on.

    The first ten are named, all others counted.
    """
    if _plainly_valid(config, schema):
        return dict(config), []
    checker = _Checker(named_max=_NAMED_MAX)
    whole = _sifted({"": config}, {"properties": {"": schema}}, "", checker)
    more = [f"{checker.more} more invalid parts"] if checker.more else []
    return dict(whole.get("", {})), checker.refused + more


def faults(config: Json, schema: Json) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield path and message of each value that does not fit, for a configuration of usual size."""
    if _plainly_valid(config, schema):
        return
    for error in _errors(config, schema):
        yield tuple(error.absolute_path), _describe("", _part_of(schema, error), error)


def _part_of(schema: Json, error: ValidationError) -> Json:
    """Return the schema of the value that an error is about."""
    for step in error.absolute_path:
        inner = schema.get("items") if isinstance(step, int) else None
        inner = inner or schema.get("properties", {}).get(step)
        schema = inner or schema.get("additionalProperties") or {}
    return schema


class _Checker:
    """Finds the faults of single values, without their members, and describes the first ones."""

    def __init__(self, named_max: int) -> None:
        self.refused: list[str] = []
        self.more = 0  # faults beyond `named_max`: jsonschema takes 50 us for each
        self._named_max = named_max

    def refuses(self, path: str, value: Any, schema: Json) -> bool:
        """Tell whether `value` is invalid; its members are not looked at."""
        if isinstance(value, dict | list):
            about_members = {key for key in _OF_MEMBERS if schema.get(key)}
            schema = {key: part for key, part in schema.items() if key not in about_members}
        if _plainly_valid(value, schema):
            return False
        if len(self.refused) >= self._named_max:
            self.more += 1
            return True
        error = next(_errors(value, schema), None)
        if error:
            self.refused.append(_describe(path, schema, error))
        return error is not None


def _sifted(value: Any, schema: Json, path: str, checker: _Checker) -> Any:
    """Return `value` without its invalid members; `value` itself if there are none."""
    changed: dict[str | int, Any] = {}
    for key, item, inner in _members(value, schema):
        if not isinstance(item, dict | list) and _plainly_valid(item, inner):
            continue
        where = f"{path}[{key}]" if isinstance(key, int) else f"{path}{'.' if path else ''}{key}"
        if checker.refuses(where, item, inner):
            changed[key] = _REFUSED
        elif (kept := _sifted(item, inner, where, checker)) is not item:
            changed[key] = kept
    if not changed:
        return value
    if isinstance(value, dict):
        kept = {key: changed.get(key, item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not _REFUSED}
    kept = [changed.get(index, item) for index, item in enumerate(value)]
    return [item for item in kept if item is not _REFUSED]


def _members(value: Any, schema: Json) -> Iterator[tuple[str | int, Any, Json]]:
    """Yield key or index, item and schema of each member that `schema` describes."""
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            inner = properties.get(key, others or None)
            if inner is not None:
                yield key, item, inner
    elif isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield index, item, schema["items"]


def _plainly_valid(value: Any, schema: Json) -> bool:
    for keyword, argument in schema.items():
        if keyword == "description":
            continue
        test = _RECOGNISED.get(keyword)
        if test is None or not test(value, argument):
            return False
    return True


def _has_type(value: Any, name: str) -> bool:
    wanted = _JSON_TYPES.get(name)
    if wanted is None or type(value) is not wanted:
        return False
    return type(value) is not str or is_whole(value)


def _properties(value: Any, properties: Json) -> bool:
    if type(value) is not dict:
        return False
    for key, item in value.items():  # a loop is a third faster than all(), for thousands of ports
        if key in properties and not _plainly_valid(item, properties[key]):
            return False
    return True


_RECOGNISED: dict[str, Callable[[Any, Any], bool]] = {
    "default": lambda _value, _default: True,
    "type": _has_type,
    "properties": _properties,
    "additionalProperties": lambda value, schema: (
        type(value) is dict
        and schema is not False
        and all(_plainly_valid(item, schema) for item in value.values())
    ),
    "items": lambda value, schema: (
        type(value) is list and all(_plainly_valid(item, schema) for item in value)
    ),
    # True == 1 in Python: compare the types as well.
    "enum": lambda value, members: any(
        type(value) is type(member) and value == member for member in members
    ),
    "minimum": lambda value, least: type(value) is int and value >= least,
    "maximum": lambda value, most: type(value) is int and value <= most,
}


def _errors(value: Any, schema: Json) -> Iterator[ValidationError]:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    # Go refuses 1400.0 as an integer, JSON Schema accepts it. Neither knows that a NUL ends a text.
    strict = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {name: lambda _checker, value, name=name: _has_type(value, name) for name in _STRICT}
    )
    validator = extend(Draft202012Validator, type_checker=strict)  # type: ignore[no-untyped-call]
    yield from validator(schema).iter_errors(value)


def _describe(path: str, schema: Json, error: ValidationError) -> str:
    value, message = error.instance, error.message
    if error.validator == "type":  # jsonschema's message quotes the value as Python, not as JSON
        text = json.dumps(value, ensure_ascii=False)
        message = f"{text} is not of type {error.validator_value}"
        if error.validator_value == "string" and type(value) is str:
            message = f"{text} contains a NUL, which is not allowed"
    elif error.validator == "enum" and schema.get("type") == "string":
        message = one_of(str(value), schema["enum"])
    message = _shortened(" ".join(message.split()))  # it contains the whole value
    return f'"{path}": {message}' if path else message


def _shortened(text: str) -> str:
    return f"{text[:150]} ... {text[-140:]}" if len(text) > 300 else text
