"""The error type of the suite, and the error codes of the CNI specification."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_AGAIN = "; delete and add the attachment again"
_FINDINGS_MAX = 10  # in one message
_CHARACTERS_MAX = 400  # of one finding among several


class Code:
    """Error codes of SPEC.md section 5 "Error", and this suite's own from 100 upward.

    The list is the specification's, with codes that no plugin here gives.
    Plain integers, not an enum: importing enum costs a cold start 2 ms.
    """

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    INVALID_NETNS = 8
    TRY_AGAIN_LATER = 11
    PLUGIN_NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    INTERNAL = 999


_LISTED_MAX = 8


class CNIError(Exception):
    """A failure in the form that the runtime gets: code, one line of text, optional details.

    `msg` names the object, the cause and the remedy.
    """

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


def listed(items: Iterable[object]) -> str:
    """Return `items` for a message, separated by commas; of many the first ones and a count."""
    texts = list(items)
    more = len(texts) - _LISTED_MAX
    shown = ", ".join(map(str, texts[:_LISTED_MAX] if more > 1 else texts))
    return f"{shown} and {more} more" if more > 1 else shown


def drifted(what: str, remedy: str = "") -> CNIError:
    """Return a finding of CHECK: `what` differs from the result of ADD.

    `remedy` restores that alone; without one only a new ADD does.
    """
    return CNIError(Code.INTERNAL, f"{what}: {remedy}" if remedy else f"{what}{_AGAIN}")


def refuse(findings: Iterable[CNIError]) -> None:
    """Raise one CNIError that names all `findings` of a CHECK, if there are any.

    A CNIError that ends the search is one of them.
    """
    found: list[CNIError] = []
    try:
        for one in findings:
            found.append(one)
    except CNIError as error:
        found.append(error)
    if found:
        raise found[0] if len(found) == 1 else _joined(found)


def _joined(findings: Sequence[CNIError]) -> CNIError:
    """Return one error for several, of bounded length; the advice to add again comes once."""
    texts = list(dict.fromkeys(one.msg.removesuffix(_AGAIN) for one in findings))
    shown = [
        text if len(text) <= _CHARACTERS_MAX else f"{text[:_CHARACTERS_MAX]}…"
        for text in texts[:_FINDINGS_MAX]
    ]
    if len(texts) > len(shown):
        shown.append(f"and {len(texts) - len(shown)} more differences")
    again = _AGAIN if any(one.msg.endswith(_AGAIN) for one in findings) else ""
    codes = {one.code for one in findings}
    details = "; ".join(dict.fromkeys(one.details for one in findings if one.details))
    return CNIError(
        codes.pop() if len(codes) == 1 else Code.INTERNAL,
        f"{'; '.join(shown)}{again}",
        details[:_CHARACTERS_MAX],
    )
