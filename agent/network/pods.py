"""What others take away from pods on this node, put back by the plugins' own code and records."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_common.kernel.netns import NetNS


def put_back(state_dir: str, own: NetNS, log: Callable[[str], object]) -> tuple[int, list[str]]:
    """Put back what living pods lack; return how many objects are back, and the problems.

    `state_dir` has the attachment records, `own` is the host's namespace. A pod is seen by its
    processes or by the mount of its namespace. Costs some milliseconds a pod.
    """
    from cni_common.node.host import Host
    from cni_common.serve.protocol import execute
    from cni_common.spec.errors import CNIError
    from commands.repair import Restored, put_back
    from plugins import load

    path, back = os.path.realpath(sys.argv[0]), list[Restored]()
    try:
        with Host(
            load, path, log, execute=execute, guarded=True, own=own, state_dir=state_dir
        ) as host:
            put_back(host, inside=False, tell=back.append)  # what a pod has done to itself stays
    except ExceptionGroup as group:
        what = "not all that a pod lacks was put back"
        return len(back), [f"{what}: {words}" for words in words_of(group)]
    except (CNIError, OSError) as error:
        return len(back), [f"what pods lack was not put back: {error}"]
    return len(back), []


def words_of(error: Exception) -> list[str]:
    """Return one text for each failure of a group, behind the names of the steps that failed."""
    if not isinstance(error, ExceptionGroup):
        return [" ".join(str(error).split())]
    found = []
    for one in error.exceptions:
        note = "".join(getattr(one, "__notes__", ())[:1])
        found += [f"{note}: {text}" if note else text for text in words_of(one)]
    return found
