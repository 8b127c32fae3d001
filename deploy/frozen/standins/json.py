"""json by its part in C: the rest of it is regular expressions, and `re` takes milliseconds."""

import _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SPACES = " \t\n\r"
_NESTED = (dict, list, tuple)
# By separators and whether keys are sorted. Without a memory of what contains the value: the suite
# writes no value that contains itself.
_encoders: "dict[tuple[tuple[str, str], bool], Any]" = {}


class _Reader:
    """The attributes that make_scanner reads."""

    strict = True
    object_hook = None
    parse_float = float

    def __init__(self, **hooks: "Any") -> None:
        self.memo: dict[str, str] = {}
        self.__dict__ |= hooks


def loads(text: str, *, object_pairs_hook: "Any", parse_int: "Any", parse_constant: "Any") -> "Any":
    """Return the value in `text`; the real json says what is wrong with it."""
    hooks = {
        "object_pairs_hook": object_pairs_hook,
        "parse_int": parse_int,
        "parse_constant": parse_constant,
    }
    read: Any = _json.make_scanner
    try:
        value, end = read(_Reader(**hooks))(text, len(text) - len(text.lstrip(_SPACES)))
    except (StopIteration, SystemError):  # SystemError: its error is in json.decoder, not loaded
        end = -1
    if end < 0 or text[end:].strip(_SPACES):
        import json

        return json.loads(text, **hooks)
    return value


def dumps(
    value: object,
    *,
    ensure_ascii: bool,
    indent: int = 0,
    sort_keys: bool = False,
    separators: tuple[str, str] = (", ", ": "),
) -> str:
    """Return `value` as text; its keys are strings."""
    if ensure_ascii:
        raise NotImplementedError
    if indent:
        return _indented(value, " " * indent, "\n", sort_keys=sort_keys)
    encode = _encoders.get((separators, sort_keys))
    if encode is None:
        between, after_key = separators
        make: Any = _json.make_encoder
        quote = _json.encode_basestring
        skip_keys, allow_nan = False, True
        encode = make(None, None, quote, None, after_key, between, sort_keys, skip_keys, allow_nan)
        _encoders[separators, sort_keys] = encode
    return "".join(encode(value, 0))


def _indented(value: object, indent: str, line: str, *, sort_keys: bool) -> str:
    quote = _json.encode_basestring
    if type(value) is str:  # most of what there is: it needs no encoder
        return quote(value)
    if not isinstance(value, _NESTED) or not value:
        return dumps(value, ensure_ascii=False)
    inner = line + indent
    if isinstance(value, dict):
        entries = sorted(value.items()) if sort_keys else value.items()
        parts = [
            f"{quote(key)}: {_indented(entry, indent, inner, sort_keys=sort_keys)}"
            for key, entry in entries
        ]
        return f"{{{inner}{f',{inner}'.join(parts)}{line}}}"
    parts = [_indented(entry, indent, inner, sort_keys=sort_keys) for entry in value]
    return f"[{inner}{f',{inner}'.join(parts)}{line}]"
