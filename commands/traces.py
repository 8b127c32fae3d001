"""The calls of plugins on this node, as cni_common/node/spans.py has noted them."""

from __future__ import annotations

import os
from ast import literal_eval
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.node.spans import BYTES_MAX, FIELDS, FILE, OLDER, parent_of, span_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

_READ_MAX = 4 * BYTES_MAX  # of one file
_RELEASED_MAX = 1 << 32
_NANOSECONDS_MAX = 1 << 63  # of a clock: the year 2262


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a call: microseconds from the call's begin, and its length."""

    name: str
    begin: int
    length: int


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a plugin."""

    at: int  # nanoseconds since the epoch, of its begin
    begun: int  # the same by the monotonic clock of this boot, which cannot be set
    ended: int  # likewise
    length: int  # microseconds, until its answer was written
    verb: str
    plugin: str
    network: str
    containerid: str
    ifname: str
    code: int  # of the CNI error, 0: it has succeeded
    message: str
    by: str  # engine, or process
    traceparent: str
    steps: Sequence[Step]
    released: int  # leases of host-local that it has freed

    @property
    def parent(self) -> tuple[str, str] | None:
        """Trace and span of the caller, None unless it has told both in the right form."""
        found = parent_of(self.traceparent)
        return found[:2] if found else None

    @property
    def span(self) -> str:
        """The id of its span, which a program that it ran has got as its parent."""
        return span_id(self.begun, self.verb, self.containerid, self.ifname)

    def json(self) -> dict[str, object]:
        """Return the call for --json."""
        return {
            "at": self.at,
            "microseconds": self.length,
            "verb": self.verb,
            "plugin": self.plugin,
            "network": self.network,
            "containerid": self.containerid,
            "ifname": self.ifname,
            "code": self.code,
            "msg": self.message,
            "by": self.by,
            "traceparent": self.traceparent,
            "released": self.released,
            "steps": [
                {"name": one.name, "begin": one.begin, "microseconds": one.length}
                for one in self.steps
            ],
        }


def calls(state_dir: str) -> list[Call]:
    """Return the calls that are still noted, by their begin. Raises OSError."""
    found = [one for name in (OLDER, FILE) for one in _calls_in(f"{state_dir}/{name}")]
    return sorted(found, key=lambda one: one.at)


def _calls_in(path: str) -> Iterator[Call]:
    """Yield the calls of one file. A line that a killed writer has cut short is left out."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        data = os.read(fd, _READ_MAX)
    finally:
        os.close(fd)
    for line in data.decode("ascii", "replace").splitlines():
        try:
            values = literal_eval(line)
            values += (0,) * (len(values) == len(FIELDS) - 1)  # of the release without `released`
            yield _call(dict(zip(FIELDS, values, strict=True)))
        except (ArithmeticError, LookupError, TypeError, ValueError):
            continue  # a line that a full or bad disk has damaged
        except (MemoryError, RecursionError, SyntaxError):
            continue


def _call(data: dict[str, Any]) -> Call:
    """Return a line as a call. Raises ArithmeticError, LookupError, TypeError, ValueError."""
    begun, ended, clock = (int(data[name]) for name in ("begun", "ended", "clock"))
    if not (0 <= begun <= ended < _NANOSECONDS_MAX and 0 <= clock < _NANOSECONDS_MAX):
        raise ValueError("its times are not those of a call")
    names, begins, ends = (data["steps"][n::3] for n in range(3))
    return Call(
        at=clock - (ended - begun),
        begun=begun,
        ended=ended,
        length=(ended - begun) // 1000,
        verb=str(data["verb"]),
        plugin=str(data["plugin"]),
        network=str(data["network"]),
        containerid=str(data["containerid"]),
        ifname=str(data["ifname"]),
        code=int(data["code"]),
        message=str(data["msg"]),
        by=str(data["by"]),
        traceparent=str(data["traceparent"]),
        steps=[
            Step(str(name), (since - begun) // 1000, (end - since) // 1000)
            for name, since, end in zip(names, begins, ends, strict=True)
            if 0 <= since <= end < _NANOSECONDS_MAX
        ],
        released=min(max(0, int(data["released"])), _RELEASED_MAX),
    )
