"""Prints the answers: in colour on a terminal, as plain text elsewhere, or as JSON."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from cni_common.serve.stdio import write_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

WIDTH = 80  # of text that goes into a file
_WIDTH_MIN = 40  # a narrower terminal breaks lines by itself
_LABEL_MAX = 24  # columns
_HANGING = " " * 4  # before a text that does not fit beside its label
MISSING = "missing: "  # how a text begins that stands out on a page


class UndeliveredError(Exception):
    """The answer could not be written to stdout; `reason` is the OSError."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def is_terminal() -> bool:
    """Tell whether the output is a terminal that shows colours; see no-color.org."""
    environ = os.environ
    plain = environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
    return os.isatty(1) and not plain


def write_json(value: Mapping[str, object], *, in_line: bool = False) -> None:
    """Print a JSON object; of many that follow each other, each in one line."""
    _write(f"{json.dumps(value, indent=None if in_line else 2)}\n")


def write_lines(text: str) -> None:
    """Print lines of text."""
    _write("".join(f"{printable(line)}\n" for line in text.splitlines()))


def plain(value: Any) -> Any:
    """Return dataclasses, and what is in them, as what JSON has."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    names = getattr(value, "__match_args__", None)
    return value if names is None else {name: plain(getattr(value, name)) for name in names}


def write_line(text: str = "") -> None:
    """Print one line."""
    _write(f"{printable(text)}\n")


def number(count: int, noun: str) -> str:
    """Return a number of things: 1 file, 2 files."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def width() -> int:
    """Return how many columns a line of text has: those of the terminal, 80 elsewhere."""
    return max(_WIDTH_MIN, shutil.get_terminal_size().columns) if is_terminal() else WIDTH


def write_text(text: str, *, style: str = "", indent: str = "", more_indent: str = "") -> None:
    """Print a paragraph that fits the width; a long word, which one may want to copy, stays whole.

    `indent` stands before the first line, `more_indent` before the others. `style` is one of
    rich's, such as "bold red", for a terminal.
    """
    lines = textwrap.wrap(
        printable(text),
        width(),
        initial_indent=indent,
        subsequent_indent=more_indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if style and is_terminal():
        from rich.style import Style

        lines = [Style.parse(style).render(line) for line in lines]
    _write("".join(f"{line}\n" for line in lines))


def write_page(lines: Sequence[tuple[str, str]], *, again: bool = False) -> None:
    """Print pairs of a label and a text, each pair without a text as the heading of what follows.

    On a terminal, a page that comes `again` and again takes the place of the one before.
    """
    lengths = (len(printable(label)) for label, text in lines if text)
    column = max((length for length in lengths if length <= _LABEL_MAX), default=0)
    bold, plain = ("\x1b[1m", "\x1b[0m") if is_terminal() else ("", "")
    page = []
    for number, (label, text) in enumerate(lines):
        if text:
            folded = _folded(printable(label), column, printable(text))
            page += _in_red(folded) if text.startswith(MISSING) else folded
        else:
            page += ([""] if number else []) + [f"{bold}{printable(label)}{plain}"]
    start = "\x1b[H\x1b[2J" if again and is_terminal() else ""
    end = "\n" if again and not start else ""
    _write(start + "".join(f"{line}\n" for line in page) + end)


def _in_red(lines: list[str]) -> list[str]:
    """Return lines that stand out on a terminal."""
    return [f"\x1b[31m{line}\x1b[0m" for line in lines] if is_terminal() else lines


def _folded(label: str, column: int, text: str) -> list[str]:
    """Return a line of a page, broken between words if it is long; no word is broken.

    A label that is longer than the column of labels has a line of its own, and so has one whose
    text has a word that fits the page, but not beside the column.
    """
    lead = f"  {label.ljust(column)}  " if label else "  "
    room = width() - len(_HANGING)
    longest = max(map(len, text.split()), default=0)
    if label and width() - len(lead) < longest <= room:
        return [lead.rstrip(), *_wrapped(text, _HANGING)]
    if len(label) > column:
        return [lead.rstrip(), *_wrapped(text, " " * (column + 4))]
    lines = _wrapped(text, " " * len(lead))
    return [lead + lines[0][len(lead) :], *lines[1:]]


def _wrapped(text: str, indent: str) -> list[str]:
    room = width() - len(indent)
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return [f"{indent}{line}" for line in lines or [""]]


def printable(text: str) -> str:
    """Return `text` with what could steer a terminal written out."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _write(text: str) -> None:
    _deliver(text.encode(_encoding(), "backslashreplace"))


def _encoding() -> str:
    return sys.stdout.encoding if sys.stdout else "utf-8"


def _deliver(data: bytes) -> None:
    """Write to the descriptor: sys.stdout would keep what failed, and try again at the end."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        write_all(1, data)
    except OSError as error:
        raise UndeliveredError(error) from None
