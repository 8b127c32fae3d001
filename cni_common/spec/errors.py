"""The error type of the suite, and the error codes of the CNI specification."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


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


def drifted(what: str) -> CNIError:
    """Return the error of a CHECK that has found `what` to differ from the result of ADD."""
    return CNIError(Code.INTERNAL, f"{what}; delete and add the attachment again")
