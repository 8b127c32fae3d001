"""json by its part in C: the rest of it is regular expressions, and `re` takes milliseconds."""

from _json import encode_basestring, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_SPACES = " \t\n\r"
_CONSTANTS = {None: "null", True: "true", False: "false"}


class _Reader:
    """What make_scanner asks for."""

    strict = True
    object_hook = None
    parse_float = float

    def __init__(self, hooks: "dict[str, Any]") -> None:
        self.object_pairs_hook = hooks["object_pairs_hook"]
        self.parse_int = hooks["parse_int"]
        self.parse_constant = hooks["parse_constant"]
        self.memo: dict[str, str] = {}


def loads(text: str, **hooks: "Callable[..., Any]") -> "Any":
    """Return the value in `text`; the real json says what is wrong with it."""
    start = len(text) - len(text.lstrip(_SPACES))
    try:
        value, end = make_scanner(_Reader(hooks))(text, start)
    except StopIteration:
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
        raise ValueError("this json leaves letters as they are")
    if indent:
        return "".join(_indented(value, indent, "\n", sort_keys=sort_keys))
    encode = make_encoder(
        {}, None, encode_basestring, None, separators[1], separators[0], sort_keys, False, True
    )
    return "".join(encode(value, 0))


def _indented(value: object, indent: int, line: str, *, sort_keys: bool) -> "Iterator[str]":
    if not isinstance(value, dict | list | tuple) or not value:
        yield dumps(value, ensure_ascii=False)
        return
    inner = line + " " * indent
    is_object = isinstance(value, dict)
    entries = value
    if isinstance(value, dict):
        entries = sorted(value.items()) if sort_keys else value.items()
    before = "{" if is_object else "["
    for entry in entries:
        yield before + inner
        before = ","
        if is_object:
            yield encode_basestring(entry[0]) + ": "
            entry = entry[1]
        yield from _indented(entry, indent, inner, sort_keys=sort_keys)
    yield line + ("}" if is_object else "]")
