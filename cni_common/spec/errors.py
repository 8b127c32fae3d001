"""The one error type of the suite and the codes of the CNI specification."""

from __future__ import annotations


class Code:
    """Error codes of SPEC.md section 5, and this suite's own from 100 upward.

    Plain integers, as Command is plain strings: with enum a cold start takes 2 ms longer.
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


class CNIError(Exception):
    """A failure as the runtime is to see it: code, one line of text, optional details.

    `msg` names the object, the cause and what to do about it.
    """

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details
