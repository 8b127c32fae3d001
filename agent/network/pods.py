"""Puts back what pods of this node have lost, by the plugins' own code and records."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cni_common.kernel.netns import NetNS
    from commands.missing import Missing


_SHOWN_MAX = 5  # objects of a pod
# Kinds of what only a new pod has again. Others are in the pod, which may do with these what it
# likes.
_OUTSIDE = ("veth", "lease")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a look at all pods."""

    repaired: int = 0  # objects that are back
    problems: tuple[str, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)  # what a pod still lacks, by container


def put_back(state_dir: str, own: NetNS, log: Callable[[str], object]) -> Outcome:
    """Put back what living pods lack.

    `state_dir` has the attachment records, `own` is the host's namespace. A pod is seen by its
    processes or by the mount of its namespace. Costs some milliseconds a pod.
    """
    from cni_common.node.host import Host
    from cni_common.serve.protocol import execute
    from cni_common.spec.errors import CNIError
    from commands.repair import Restored, put_back
    from plugins import load

    path, back = os.path.realpath(sys.argv[0]), list[Restored]()
    lost = defaultdict[str, list[str]](list)

    def note(one: Missing) -> None:
        if one.kind in _OUTSIDE:
            lost[one.containerid].append(f"{one.kind} {one.what}")

    def keep(one: Restored) -> None:
        back.append(one)
        log(str(one))

    problems: tuple[str, ...] = ()
    failed: dict[str, str] = {}
    try:
        with Host(
            load, path, log, execute=execute, guarded=True, own=own, state_dir=state_dir
        ) as host:
            # Changes that a pod has made to itself stay.
            put_back(host, inside=False, tell_lost=note, tell=keep)
    except ExceptionGroup as group:
        what = "not all that a pod lacks was put back"
        problems = tuple(f"{what}: {words}" for words in words_of(group))
        for error in group.exceptions:
            # The note begins with the container.
            container = "".join(getattr(error, "__notes__", ())[:1]).partition(" ")[0]
            failed[container] = f"{what}: {'; '.join(words_of(error))}"
    except (CNIError, OSError) as error:
        problems = (f"what pods lack was not put back: {error}",)
    gone = {container: _gone(found) for container, found in lost.items() if container}
    return Outcome(len(back), problems, gone | failed)


def _gone(what: Sequence[str]) -> str:
    more = len(what) - _SHOWN_MAX
    shown = ", ".join(what[:_SHOWN_MAX]) + (f", and {more} more" if more > 0 else "")
    return f"gone, and only a new pod has it again: {shown}"


def words_of(error: Exception) -> list[str]:
    """Return one text for each failure of a group, behind the names of the steps that failed."""
    if not isinstance(error, ExceptionGroup):
        return [" ".join(str(error).split())]
    found = []
    for one in error.exceptions:
        note = "".join(getattr(one, "__notes__", ())[:1])
        found += [f"{note}: {text}" if note else text for text in words_of(one)]
    return found
