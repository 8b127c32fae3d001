"""Validation of a configuration against a SCHEMA, by jsonschema or a fast path.

Importing jsonschema takes longer than a whole ADD. `_plainly_valid` reads the same SCHEMA and can
only accept. All other configurations go to jsonschema, which alone can refuse.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


def key_schema(type: str, description: str, **more: object) -> Json:
    """Return the schema of one configuration key: its JSON type, a sentence, other keywords."""
    return {"type": type, "description": description, **more}


def validate(config: Json, schema: Json) -> None:
    """Raise CNIError 7 that names the first invalid key, unless `config` fits `schema`."""
    if _plainly_valid(config, schema):
        return
    for error in _errors(config, schema):
        raise CNIError(Code.INVALID_CONFIG, f"invalid configuration: {_describe(error)}")


def salvage(config: Json, schema: Json) -> tuple[dict[str, Any], list[str]]:
    """Return `config` without its invalid parts, and one message for each: DEL must go on."""
    if _plainly_valid(config, schema):
        return dict(config), []
    from copy import deepcopy

    refused: list[str] = []
    rest: dict[str, Any] = deepcopy(dict(config))
    while not _plainly_valid(rest, schema):
        error = next(_errors(rest, schema), None)
        if error is None:
            break
        refused.append(_describe(error))
        _remove(rest, list(error.absolute_path))
    return rest, refused


def _remove(value: Any, path: list[str | int]) -> None:
    """Remove the member at `path` from `value`, and keep its neighbours."""
    if not path:
        value.clear()
        return
    for part in path[:-1]:
        value = value[part]
    del value[path[-1]]


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


def _errors(config: Json, schema: Json) -> Iterator[ValidationError]:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    # Go refuses 1400.0 as an integer, JSON Schema accepts it. Neither knows that a NUL ends a text.
    strict = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {name: lambda _checker, value, name=name: _has_type(value, name) for name in _STRICT}
    )
    validator = extend(Draft202012Validator, type_checker=strict)  # type: ignore[no-untyped-call]
    yield from validator(schema).iter_errors(config)


def _describe(error: ValidationError) -> str:
    path = ""
    for part in error.absolute_path:
        path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part}"
    message = error.message
    if error.validator == "type":  # jsonschema's message quotes the value as Python, not as JSON
        value = json.dumps(error.instance, ensure_ascii=False)
        message = f"{value} is not of type {error.validator_value}"
        if error.validator_value == "string" and type(error.instance) is str:
            message = f"{value} contains a NUL, which is not allowed"
    message = " ".join(message.split())
    if len(message) > 300:  # the message contains the whole value
        message = f"{message[:150]} ... {message[-140:]}"
    return f'"{path}": {message}' if path else message
