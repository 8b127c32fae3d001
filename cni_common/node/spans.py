"""The trace of each call for `pycni trace`: a line in a file of bounded size.

There are two files, of which the older one is replaced when the newer one is full. Writers need no
lock: a line is one write to a file in append mode, and the one writer whose line crosses the limit
renames the file. A line is the text of a tuple of Python, which one call of C makes.
"""

from __future__ import annotations

import os
from time import time_ns
from typing import TYPE_CHECKING

from cni_common.spec.steps import CALL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FILE, OLDER = "trace", "trace.old"
BYTES_MAX = 1 << 19  # of one file: about a thousand calls
# The members of a line: the wall clock at the end; begin and end by the monotonic clock, as of the
# steps; all clocks in nanoseconds.
FIELDS = (
    *("clock", "begun", "ended", "steps", "code", "msg", "plugin", "network", "by"),
    *("verb", "containerid", "ifname", "traceparent"),
    "released",  # leases that the call has freed; the first release with traces had no such member
)
_TEXT_MAX = 300  # characters of a message, and of what the environment says
_FLAGS = (
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
)  # not even a pipe keeps a call waiting


def leave(
    directory: str,
    plugin: str,
    environ: Mapping[str, str],
    network: str,
    *,
    outcome: tuple[int, str],
    by: str,
) -> Callable[[], None]:
    """End the call that `CALL` has; return what writes its line, which never fails or waits.

    `outcome` is the CNI error code and its message, (0, "") for none; `by` says what served it.
    """
    released = CALL.released
    begun, ended, steps = CALL.end()
    clock = time_ns()

    def write() -> None:
        try:
            get = environ.get
            names = get("CNI_COMMAND", ""), get("CNI_CONTAINERID", ""), get("CNI_IFNAME", "")
            texts = [outcome[1], plugin, network, by, *names, get("TRACEPARENT", "")]
            if max(map(len, texts)) > _TEXT_MAX:
                texts = [one[:_TEXT_MAX] for one in texts]
            line = ascii((clock, begun, ended, steps, int(outcome[0]), *texts, released))
            _append(directory, f"{line}\n".encode())
        except Exception:  # noqa: BLE001, S110 - a trace is never worth a call
            pass

    return write


def parent_of(traceparent: str) -> tuple[str, str, str] | None:
    """Return trace, span and flags of W3C's Trace Context of version 00; None of other texts."""
    version, _, rest = traceparent.partition("-")
    trace, _, rest = rest.partition("-")
    span, _, flags = rest.partition("-")
    digits = version + trace + span + flags
    if (version, len(trace), len(span), len(flags)) != ("00", 32, 16, 2):
        return None
    if digits.strip("0123456789abcdef") or not trace.strip("0") or not span.strip("0"):
        return None
    return trace, span, flags


def span_id(begun: int, verb: str, containerid: str, ifname: str) -> str:
    """Return the id of a call's span; `begun` is its begin by the monotonic clock."""
    from hashlib import sha256

    text = f"{begun} {verb} {containerid} {ifname}"
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def handed_on(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return what a program gets that the call in `environ` runs: it is a child of this call.

    Without a valid TRACEPARENT that is nothing new.
    """
    parent = parent_of(environ.get("TRACEPARENT", ""))
    if parent is None:
        return {}
    names = (environ.get(f"CNI_{one}", "") for one in ("COMMAND", "CONTAINERID", "IFNAME"))
    return {"TRACEPARENT": f"00-{parent[0]}-{span_id(CALL.begun, *names)}-{parent[2]}"}


def _append(directory: str, line: bytes) -> None:
    path = f"{directory}/{FILE}"
    try:
        fd = os.open(path, _FLAGS, 0o600)
    except FileNotFoundError:
        os.mkdir(directory, 0o700)
        fd = os.open(path, _FLAGS, 0o600)
    try:
        os.write(fd, line)
        end = os.lseek(fd, 0, os.SEEK_CUR)
    finally:
        os.close(fd)
    # The second condition is for a file whose writer was killed before it could rename.
    if end - len(line) < BYTES_MAX <= end or end > 2 * BYTES_MAX:
        os.rename(path, f"{directory}/{OLDER}")
