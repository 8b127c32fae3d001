"""JSON, read and written as Go's encoding/json does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, NoReturn

    Json = Mapping[str, Any]  # as it is read
    JsonObject = dict[str, Any]  # and as it is put together

# Go writes these five as \u escapes, for use inside HTML.
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
# Go accepts 10,000 levels; functions here recurse once per level.
_DEPTH_MAX = 100
_FOLDED_MAX = 256
_DIGITS_MAX = 100  # Python refuses to convert more than 4300
# The names in each part of a SCHEMA without regard to case, by that part's id. SCHEMAs are
# constant, and a configuration has keys of other plugins'.
_folded: dict[int, tuple[Json, dict[str, str]]] = {}
_TOO_DEEP = f"nested more than {_DEPTH_MAX} levels deep"


def decode(data: bytes) -> Json:
    """Return the JSON object in `data`.

    As strict as Go: no NaN or Infinity, no byte order mark, nothing behind the object. The last
    value of a repeated key counts, repeated objects are merged; invalid UTF-8 and lone surrogates
    become U+FFFD. Top-level `null` is an empty object. At most 100 levels and
    integers of 100 digits. Raises CNIError 6.
    """
    text = data.decode("utf-8", "replace")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_constant=_refuse_constant
        )
        if text.count("{") + text.count("[") > _DEPTH_MAX:  # fewer brackets cannot nest that deep
            _refuse_depth(value)
        if "\\ud" in text or "\\uD" in text:
            value = _without_surrogates(value)
    except (ValueError, RecursionError) as error:
        cause = _TOO_DEEP if isinstance(error, RecursionError) else str(error)
        raise CNIError(
            Code.DECODING_FAILURE, f"the configuration on stdin is not valid JSON: {cause}"
        ) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CNIError(
            Code.DECODING_FAILURE,
            f"the configuration on stdin must be a JSON object, not {type_name(value)}",
        )
    return value


def fold(config: Json, schema: Json) -> dict[str, Any]:
    """Return `config` with keys in the spelling of `schema`, at every level that it describes.

    As in Go, keys match without regard to case, the last of several spellings counts, and `null`
    means absent. Unknown keys are kept unchanged.
    """
    properties = schema.get("properties", {})
    folded: dict[str, Any] = {}
    for key, value in config.items():
        if value is None:
            continue
        name = key if key in properties else _spelling(key, properties)
        if isinstance(value, dict | list):
            value = _fold_value(value, properties.get(name, {}))
        folded[name] = _merge(folded[name], value) if name in folded else value
    return folded


def _spelling(key: str, properties: Json) -> str:
    """Return the one of `properties` that is `key` but for case, the last of several, or `key`."""
    if not properties:
        return key
    known = _folded.get(id(properties))
    if known is None or known[0] is not properties:
        if len(_folded) >= _FOLDED_MAX:
            _folded.clear()
        known = properties, {name.casefold(): name for name in properties}
        _folded[id(properties)] = known
    return known[1].get(key.casefold(), key)


def encode(value: object, *, sort_keys: bool) -> bytes:
    """Return `value` as Go's MarshalIndent prints it: 4 spaces, HTML escapes, no newline."""
    text = json.dumps(value, indent=4, ensure_ascii=False, sort_keys=sort_keys)
    return _printable(text)


def encode_line(value: object) -> bytes:
    """Return `value` as one compact line that ends in a newline."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _printable(text + "\n")


def type_name(value: object) -> str:
    """Return the JSON name of the type of `value`."""
    for python_type, name in (
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a number"),
        (str, "a string"),
        (list, "an array"),
        (dict, "an object"),
    ):
        if isinstance(value, python_type):
            return name
    return "null"


def _fold_value(value: Any, schema: Json) -> Any:
    if isinstance(value, dict):
        return fold(value, schema)
    if isinstance(value, list) and "items" in schema:
        return [_fold_value(item, schema["items"]) for item in value]
    return value


def _merge(old: Any, new: Any) -> Any:
    if new is None:
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        _add(old, new.items())  # in place: a key that is repeated a thousand times costs no more
        return old
    return new


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):  # a key is repeated
        result = {}
        _add(result, pairs)
    return result


def _add(result: dict[str, Any], pairs: Iterable[tuple[str, Any]]) -> None:
    """Put `pairs` into `result`, which belongs to the parse at hand."""
    for key, value in pairs:
        # Removed first, so that a repeated key has the position of its last occurrence, as in Go.
        result[key] = _merge(result.pop(key, None), value)


def _refuse_depth(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(_DEPTH_MAX + 1):
        level = [
            item
            for one in level
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS_MAX:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    return value


def _printable(text: str) -> bytes:
    if text.isascii() and not ("<" in text or ">" in text or "&" in text):
        return text.encode()  # as it nearly always is
    # Environment variables that are not UTF-8 arrive as surrogate escapes.
    escaped = text.translate(_ESCAPES).encode("utf-8", "surrogateescape")
    return escaped.decode("utf-8", "replace").encode()
