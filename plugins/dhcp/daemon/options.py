"""The common part of both DHCPs' options: domain names, and text for people."""

from __future__ import annotations

_POINTERS_MAX = 64  # of compressed domain names, against circles


class MalformedError(ValueError):
    """The bytes are no DHCP message, or an option's value is none of its kind."""


def domains(value: bytes) -> list[str]:
    """Return the names in an option (RFC 1035, 3397, 8415 section 10). Raises MalformedError."""
    found, at = [], 0
    while at < len(value):
        labels, at = _labels(value, at)
        if labels:
            found.append(".".join(labels))
    return found


def is_label(text: str) -> bool:
    """Tell whether `text` can be a part of a domain: letters, digits, - and _."""
    return text.isascii() and text.replace("-", "").replace("_", "").isalnum()


def printable(value: bytes) -> str:
    """Return a text of a server without control characters."""
    text = value.rstrip(bytes(1)).decode("utf-8", "replace")
    return "".join(letter for letter in text if letter.isprintable())


def _labels(value: bytes, at: int) -> tuple[list[str], int]:
    """Return the labels of the name at `at`, and where the next name begins."""
    labels: list[str] = []
    behind = -1
    for _ in range(_POINTERS_MAX):
        if at >= len(value):
            break
        length = value[at]
        if length == 0:
            return labels, (at + 1 if behind < 0 else behind)
        if length >= 0xC0:  # a pointer to a name that came before
            if at + 1 >= len(value):
                break
            behind = at + 2 if behind < 0 else behind
            at = (length & 0x3F) << 8 | value[at + 1]
            continue
        label = value[at + 1 : at + 1 + length]
        if length >= 0x40 or len(label) != length:
            break
        text = label.decode("ascii", "replace")
        if not is_label(text):
            raise MalformedError("a domain with other characters than letters, digits, - and _")
        labels.append(text)
        at += 1 + length
    raise MalformedError("a domain that does not end")
