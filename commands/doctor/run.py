"""The course of `pycni doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError
from commands import DONE, FOUND, LACKING, view
from commands.doctor import engine, firewalls, kernel, neighbours, networks, paths, state
from commands.doctor.lines import ERROR, LEVELS, OK, WARNING, Line, Patient
from commands.verb import RefusedError, words_of

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cni_common.node.host import Host

    Check = Callable[[Patient], Iterator[Line]]

# By section of the page, in its order.
CHECKS: Mapping[str, Sequence[Check]] = {
    "networks": (
        networks.runtimes,
        networks.configurations,
        networks.plugins,
        networks.status,
        networks.pools,
    ),
    "kernel": (networks.needs, paths.strictness, kernel.sysctls),
    "others": (firewalls.check, neighbours.proxies, neighbours.managers, paths.macs),
    "state": (state.leftovers, state.room, state.locks, engine.check, state.clock),
}
_STATUSES = {OK: DONE, WARNING: FOUND, ERROR: LACKING}
_STYLES = {OK: "green", WARNING: "yellow", ERROR: "bold red"}


def run(options: Namespace, host: Host) -> int:
    """Print the page; return the status of the worst line."""
    patient = Patient(host, options)
    sections = {name: list(_lines(patient, checks)) for name, checks in CHECKS.items()}
    everything = [line for lines in sections.values() for line in lines]
    worst = max((line.level for line in everything), key=LEVELS.index, default=OK)
    if options.json:
        view.write_json({"worst": worst, "lines": list(_json(sections))})
    else:
        _print(sections)
    return _STATUSES[worst]


def _lines(patient: Patient, checks: Sequence[Check]) -> Iterator[Line]:
    for check in checks:
        try:
            yield from check(patient)
        except (CNIError, OSError, RefusedError) as error:
            subject = check.__name__
            yield Line(WARNING, subject, f"cannot be looked at: {words_of(error)}")


def _json(sections: Mapping[str, Sequence[Line]]) -> Iterator[dict[str, str]]:
    for name, lines in sections.items():
        for one in lines:
            yield {
                "section": name,
                "level": one.level,
                "subject": one.subject,
                "text": one.text,
                "remedy": one.remedy,
            }


def _print(sections: Mapping[str, Sequence[Line]]) -> None:
    for name, lines in sections.items():
        view.write_text(name, style="bold cyan")
        for one in lines:
            text = f"{one.level:7}  {one.subject}: {one.text}"
            style = "" if one.level == OK else _STYLES[one.level]
            view.write_text(text, style=style, indent="  ", more_indent=" " * 11)
            if one.remedy:
                view.write_text(f"-> {one.remedy}", indent=" " * 11, more_indent=" " * 14)
        view.write_line()
    counts = [
        sum(one.level == level for lines in sections.values() for one in lines) for level in LEVELS
    ]
    warnings, errors = view.number(counts[1], "warning"), view.number(counts[2], "error")
    view.write_text(f"{counts[0]} ok, {warnings}, {errors}")
