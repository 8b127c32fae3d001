"""Counts of calls since the boot, from the traces that calls leave.

The traces forget, and counters must not: each look adds the calls that ended since the last one to
a file beside the traces. So one look in two thousand calls misses none. `pycni metrics` and the
agent advance the same counts.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cni_common.spec.request import Command
from commands import held, traces
from commands.exposition import COUNTER, GAUGE, HISTOGRAM, SUMMARY, Family
from plugins import TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_common.spec.wire import JsonObject
    from commands.traces import Call


FILE = "metrics.json"
# Seconds: from a warm ADD by the engine to the limit of a runtime.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)
_BYTES_MAX = 1 << 20
_SETTLED_NS = 1_000_000_000  # a call that has ended for so long has left its line
_VERBS = frozenset({Command.ADD, Command.DEL, Command.CHECK, Command.GC, Command.STATUS})
_EXHAUSTED = "no IP addresses available"  # of an ADD's refusal, in the reference's words, too
RECLAIMED = "reclaim"  # why a lease was released, beside the verbs of calls
_RELEASING = (Command.DEL, Command.GC, Command.ADD)
_OTHER = "other"  # labels have no words of a caller's choice: they would be without bound


def of_calls(state_dir: str) -> list[Family]:
    """Return the counts of calls, durations and steps, advanced to now, and of calls at work.

    Raises OSError.
    """
    inflight = Family("pycni_inflight", "Attachments that a call is at work on.", GAUGE)
    inflight.add(held.attachments(state_dir))
    with _kept(state_dir) as counts:
        until = time.monotonic_ns() - _SETTLED_NS
        news = [one for one in traces.calls(state_dir) if counts["ended"] < one.ended <= until]
        for one in news:
            _count(counts, one)
        counts["ended"] = max([counts["ended"], *(one.ended for one in news)])
        return [*_families(counts), inflight]


def note_released(state_dir: str, reason: str, count: int) -> None:
    """Count leases that no call of a plugin has released. Raises OSError."""
    with _kept(state_dir) as counts:
        _add_released(counts, reason, count)


def _add_released(counts: JsonObject, reason: str, count: int) -> None:
    counts["released"][reason] = counts["released"].get(reason, 0) + count


def _count(counts: JsonObject, call: Call) -> None:
    verb = call.verb if call.verb in _VERBS else _OTHER
    plugin = call.plugin if call.plugin in TYPES else _OTHER
    key = f"{verb} {plugin} {call.code}"
    counts["requests"][key] = counts["requests"].get(key, 0) + 1
    counts["exhausted"] += call.verb == Command.ADD and _EXHAUSTED in call.message
    if call.released and verb in _RELEASING:
        _add_released(counts, verb, call.released)
    seconds = call.length / 1e6
    spread = counts["durations"].setdefault(f"{verb} {plugin}", [0.0, *[0] * (len(BUCKETS) + 1)])
    spread[0] += seconds
    spread[1 + next((n for n, most in enumerate(BUCKETS) if seconds <= most), len(BUCKETS))] += 1
    for step in call.steps:
        total = counts["steps"].setdefault(step.name, [0, 0.0])
        total[0] += 1
        total[1] += step.length / 1e6


def _families(counts: JsonObject) -> Iterator[Family]:
    requests = Family("pycni_requests", "Calls of plugins, by their CNI error code.", COUNTER)
    for key, count in sorted(counts["requests"].items()):
        verb, plugin, code = key.split(" ")
        requests.add(count, verb=verb, plugin=plugin, code=code)
    yield requests
    what = "Time from a call's begin in Python until its answer was written."
    durations = Family("pycni_request_duration_seconds", what, HISTOGRAM)
    for key, (total, *counted) in sorted(counts["durations"].items()):
        verb, plugin = key.split(" ")
        _add_histogram(durations, total, counted, verb=verb, plugin=plugin)
    yield durations
    steps = Family("pycni_step_duration_seconds", "Time of the steps of calls.", SUMMARY)
    for name, (count, seconds) in sorted(counts["steps"].items()):
        steps.add(count, "_count", step=name)
        steps.add(seconds, "_sum", step=name)
    yield steps
    exhausted = Family("pycni_ipam_exhausted", "ADDs that found no free address.", COUNTER)
    exhausted.add(counts["exhausted"])
    yield exhausted
    what = "Leases that were released, by the verb of the call or of pycni."
    released = Family("pycni_ipam_released", what, COUNTER)
    none = dict.fromkeys((RECLAIMED, *_RELEASING), 0)
    for reason, count in sorted({**none, **counts["released"]}.items()):
        released.add(count, reason=reason)
    yield released


def _add_histogram(family: Family, total: float, counted: Sequence[int], **labels: str) -> None:
    so_far = 0
    for most, count in zip((*BUCKETS, float("inf")), counted, strict=True):
        so_far += count
        family.add(so_far, "_bucket", **labels, le="+Inf" if most == float("inf") else f"{most:g}")
    family.add(so_far, "_count", **labels)
    family.add(total, "_sum", **labels)


@contextmanager
def _kept(state_dir: str) -> Iterator[JsonObject]:
    """Give the counts of the last look, alone, and keep what has become of them.

    A file that is damaged, or of another release, is as good as none: counters may begin anew.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(f"{state_dir}/{FILE}", flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        counts = _read(os.pread(fd, _BYTES_MAX, 0))
        yield counts
        data = json.dumps(counts, separators=(",", ":")).encode()
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 0)
    finally:
        os.close(fd)


def _read(data: bytes) -> JsonObject:
    none: JsonObject = {
        "ended": 0,  # of the last call that was counted
        "buckets": list(BUCKETS),
        "requests": {},
        "durations": {},
        "steps": {},
        "exhausted": 0,
        "released": {},
    }
    try:
        found = json.loads(data)
    except ValueError:
        return none
    same = isinstance(found, dict) and found.keys() == none.keys()
    return found if same and found["buckets"] == none["buckets"] else none
