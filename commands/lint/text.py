"""JSON with the place of each value. Pure.

The standard library's parser decides what is JSON; this one, which runs after it, only notes where
each value stands.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from json import decoder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    Path = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t\n\r]*")
_ATOM = re.compile(r"[^\s,\]}]+")
_STRING: Callable[[str, int], tuple[str, int]] = vars(decoder)["scanstring"]  # not in typeshed
_DEPTH_MAX = 100  # as cni_common.spec.wire has it


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A stretch of a file: lines and columns from 1 on, in characters, the end exclusive."""

    line: int = 1
    column: int = 1
    end_line: int = 1
    end_column: int = 1


@dataclass(slots=True)
class Value:
    """One value of a JSON text."""

    start: int  # offsets in characters
    end: int = 0
    atom: Any = None  # of a value that is no container
    members: list[tuple[str, tuple[int, int], Value]] | None = None  # key, its offsets, value
    items: list[Value] | None = None

    def member(self, key: str) -> tuple[tuple[int, int], Value] | None:
        """Return the last member whose key is `key` but for case, as Go takes it."""
        alike = [one for one in self.members or () if one[0].casefold() == key.casefold()]
        exact = [one for one in alike if one[0] == key] or alike
        return exact[-1][1:] if exact else None


def _nothing() -> Value:
    return Value(0)


class TextError(Exception):
    """The text is not JSON; `span` is where."""

    def __init__(self, text: str, span: Span) -> None:
        super().__init__(text)
        self.span = span


@dataclass(slots=True)
class Text:
    """A JSON text, and where each of its values stands."""

    text: str
    root: Value = field(default_factory=_nothing)
    _starts: list[int] = field(default_factory=list)  # offset of each line

    @classmethod
    def of(cls, data: bytes) -> Text:
        """Return the text in `data`. Raises TextError."""
        text = cls(data.decode("utf-8", "replace"))
        text._starts = [0, *(match.end() for match in re.finditer("\n", text.text))]
        try:
            json.loads(text.text, parse_constant=_refuse, parse_int=str)
        except json.JSONDecodeError as error:
            words, place = _words(error)
            raise TextError(words, text.span(place, place + 1)) from None
        except (ValueError, RecursionError) as error:
            words = str(error) if isinstance(error, ValueError) else "nested too deep"
            raise TextError(words, Span()) from None
        text.root = text._value(0, 0)
        return text

    def span(self, start: int, end: int) -> Span:
        """Return lines and columns of two offsets."""
        return Span(*self._place(start), *self._place(end))

    def find(self, path: Sequence[str | int], *, key: bool = False) -> Span:
        """Return where the value at `path` stands, or its key; of one that is absent, its parent.

        Of a parent that is an object or list only the first character: it may be a whole file.
        """
        value, of_key = self.root, None
        for step in path:
            inner = self._step(value, step)
            if inner is None:
                return self.span(value.start, value.start + 1)
            of_key, value = inner
        if key and of_key:
            return self.span(*of_key)
        if value.members is not None or value.items is not None:
            return self.span(*(of_key or (value.start, value.start + 1)))
        return self.span(value.start, value.end)

    def path_of_text(self, wanted: str, below: Path) -> Path | None:
        """Return the path of the first string `wanted` below a path; None for none."""
        return next((path for path, one in self._below(below) if one.atom == wanted), None)

    def path_of_key(self, wanted: str, below: Path) -> Path | None:
        """Return the path of the first key `wanted` below a path; None for none."""
        found = (path for path, _ in self._below(below) if path[-1:] == (wanted,))
        return next(found, None)

    def _below(self, path: Path) -> Iterator[tuple[Path, Value]]:
        value = self.root
        for step in path:
            inner = self._step(value, step)
            if inner is None:
                return
            value = inner[1]
        for more, one in _walk(value):
            yield (*path, *more), one

    def repeated(self) -> Iterator[tuple[str, Span, Span]]:
        """Yield each key that stands twice in one object: key, its place, the place before."""
        for _, value in _walk(self.root):
            seen: dict[str, tuple[int, int]] = {}
            for key, place, _inner in value.members or ():
                if key in seen:
                    yield key, self.span(*place), self.span(*seen[key])
                seen[key] = place

    def _place(self, offset: int) -> tuple[int, int]:
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def _step(self, value: Value, step: str | int) -> tuple[tuple[int, int] | None, Value] | None:
        if isinstance(step, int):
            items = value.items or []
            return (None, items[step]) if 0 <= step < len(items) else None
        return value.member(step)

    def _value(self, offset: int, depth: int) -> Value:
        start = self._skip(offset)
        if depth > _DEPTH_MAX:
            raise TextError(f"nested more than {_DEPTH_MAX} levels deep", self.span(start, start))
        match self.text[start]:
            case "{":
                return self._object(start, depth)
            case "[":
                return self._array(start, depth)
            case '"':
                atom, end = _STRING(self.text, start + 1)
                return Value(start, end, atom)
            case _:
                found = _ATOM.match(self.text, start)
                end = found.end() if found else start
                return Value(start, end, json.loads(self.text[start:end], parse_int=str))

    def _object(self, start: int, depth: int) -> Value:
        value = Value(start, members=[])
        at = self._skip(start + 1)
        while self.text[at] != "}":
            key_start = self._skip(at)
            key, key_end = _STRING(self.text, key_start + 1)
            inner = self._value(self._skip(key_end) + 1, depth + 1)
            assert value.members is not None
            value.members.append((key, (key_start, key_end), inner))
            at = self._after(inner.end)
        value.end = at + 1
        return value

    def _array(self, start: int, depth: int) -> Value:
        value = Value(start, items=[])
        at = self._skip(start + 1)
        while self.text[at] != "]":
            inner = self._value(at, depth + 1)
            assert value.items is not None
            value.items.append(inner)
            at = self._after(inner.end)
        value.end = at + 1
        return value

    def _after(self, offset: int) -> int:
        """Return where the next member begins, or the container ends."""
        at = self._skip(offset)
        return self._skip(at + 1) if self.text[at] == "," else at

    def _skip(self, offset: int) -> int:
        found = _SPACE.match(self.text, offset)
        return found.end() if found else offset


def _walk(value: Value) -> Iterator[tuple[Path, Value]]:
    yield (), value
    for key, _, inner in value.members or ():
        for path, one in _walk(inner):
            yield (key, *path), one
    for index, inner in enumerate(value.items or ()):
        for path, one in _walk(inner):
            yield (index, *path), one


def _words(error: json.JSONDecodeError) -> tuple[str, int]:
    """Return what is wrong, with the usual cause, and the offset."""
    rest, before = error.doc[error.pos :], error.doc[: error.pos].rstrip()
    if error.msg.startswith("Illegal trailing comma"):  # of Python 3.13
        return "a comma before the end", error.pos
    if before.endswith(",") and rest.startswith(("}", "]")):
        return "a comma before the end", len(before) - 1
    return _cause(error, rest), error.pos


def _cause(error: json.JSONDecodeError, rest: str) -> str:
    if error.doc.startswith("\ufeff"):
        return "it begins with a byte order mark, which JSON does not have"
    if rest.startswith(("//", "/*", "#")):
        return "a comment, which JSON does not have"
    if rest.startswith(("\u201c", "\u201d", "\u2018", "\u2019", "'")):
        return 'a quotation mark other than "'
    if error.msg == "Extra data":
        return "something stands behind the end"
    if not rest.strip():
        return f"{error.msg}: the file ends too early" if error.doc.strip() else "it is empty"
    return error.msg


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
