"""Sweeps: a call made again and again, with a failure at one of its operations after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.faults.inprocess import Fault, faulty
from tests.machine import Json, Machine
from tests.scope import ALL, one_of_each

_LIMIT = 500  # operations: more than any call has


def kind_of(what: str) -> str:
    """Return what an operation has in common with others: `write record`, `sysctl`.

    Of those on host-local's disk it is also what the file is for, as some do without one of them:
    `disk close last_reserved_ip`, `disk open lease`.
    """
    first, *words = what.split()
    if first == "disk":
        call, name = words
        return f"disk {call} {file_of(name)}"
    return first if first == "sysctl" else " ".join([first, *words[:1]])


def file_of(name: str) -> str:
    """Return what a file of host-local is for."""
    if "/indexes" in name:
        return "index"
    is_lease = ":" in name or name[0].isdigit()
    return "lease" if is_lease else name.partition(".")[0] or name


def faults(rehearse: Callable[[Fault], object], **keys: Any) -> Iterator[Fault]:
    """Yield a Fault for each operation of a call, and at last one that does not happen.

    For a sample it is one operation of each kind: `rehearse` makes the call without a failure and
    takes it back, so that they are known. `keys` are those of Fault.
    """
    for number in range(1, _LIMIT) if ALL else _sampled(rehearse, **keys):
        yield Fault(number, **keys)
    raise AssertionError("each of the operations of a sweep happens")


def _sampled(rehearse: Callable[[Fault], object], **keys: Any) -> Iterator[int]:
    rehearsal = Fault(**keys)
    rehearse(rehearsal)
    assert len(rehearsal.done) > 2, f"a sweep of {rehearsal.done}"
    yield from (at + 1 for at in one_of_each([kind_of(what) for what in rehearsal.done]))
    yield _LIMIT


def rehearsal(
    machine: Machine,
    plugin: str,
    command: str,
    config: Json,
    netns: str,
    before_del: Callable[[], object] = lambda: None,
) -> Callable[[Fault], None]:
    """Return an ADD and its DEL, the operations of one of which are counted."""

    def rehearse(fault: Fault) -> None:
        for one in ("ADD", "DEL"):
            if one == "DEL":
                before_del()
            with faulty(machine, fault if one == command else Fault()) as host:
                machine.ok(plugin, one, config, netns, host=host)

    return rehearse
