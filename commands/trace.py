"""`pycni trace`: the last calls of plugins, and the time of each step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from commands import DONE, FOUND, traces, view

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from cni_common.node.host import Host
    from commands.traces import Call

    Line = tuple[str, str]

_BAR = 40  # columns of a waterfall


def run(options: Namespace, host: Host) -> int:
    """Show or export calls; FOUND if none is as asked for. Raises OSError, RefusedError."""
    found = [one for one in traces.calls(host.state_dir) if _is_meant(one, options)]
    if options.last:
        found = found[-options.last :]
    if options.otlp:
        from commands import otlp

        otlp.export(found, options.otlp)
    elif options.json:
        view.write_json({"calls": [one.json() for one in found]})
    elif found:
        _print(found)
    else:
        view.write_line("no call is noted that is as asked for")
    return DONE if found else FOUND


def _is_meant(call: Call, options: Namespace) -> bool:
    return (
        call.containerid.startswith(options.container)
        and call.length >= 1000 * options.slow
        and (call.code != 0 or not options.failed)
    )


def _print(calls: Sequence[Call]) -> None:
    lines: list[Line] = []
    last = None
    for one in calls:
        owner = one.containerid, one.network, one.ifname
        if owner != last:
            lines += _head(one)
        last = owner
        lines += _waterfall(one)
    view.write_page(lines)


def _head(call: Call) -> Iterator[Line]:
    yield f"container {call.containerid}" if call.containerid else "no container", ""
    yield "interface", f"{call.ifname or 'none'} on network {call.network or 'unknown'}"


def _waterfall(call: Call) -> Iterator[Line]:
    seconds, nanoseconds = divmod(call.at, 1_000_000_000)
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    took = f"{_milliseconds(call.length)}, by {'the engine' if call.by == 'engine' else 'itself'}"
    yield call.verb, f"{call.plugin} at {when}.{nanoseconds // 1_000_000:03}Z, {took}"
    if call.code:
        yield "failed", f"code {call.code}: {call.message}"
    mark = "█" if view.is_terminal() else "#"
    for step in sorted(call.steps, key=lambda one: (one.begin, -one.length)):
        unit = max(call.length, 1) / _BAR
        first = max(min(int(step.begin / unit), _BAR - 1), 0)
        width = max(min(round(step.length / unit), _BAR - first), 1)
        bar = f"{'.' * first}{mark * width}{'.' * (_BAR - first - width)}"
        yield f" {step.name}", f"{bar} {_milliseconds(step.length)}"


def _milliseconds(microseconds: int) -> str:
    return f"{microseconds / 1000:.3f} ms"
