"""The command line of each verb: a module here, and a line in VERBS.

A module of this package declares a constant VERB. The modules that do the work are imported inside
functions, as `pycni --help` loads all verbs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from cni_common.node.host import Loader
    from cni_common.serve.cli import Command
    from commands.verb import Verb

VERBS = (
    "audit",
    "doctor",
    "explain",
    "inspect",
    "leases",
    "lint",
    "metrics",
    "plan",
    "reclaim",
    "repair",
    "support",
    "topology",
    "trace",
)


def verb(name: str) -> Verb:
    """Return one of VERBS."""
    module = f"{__name__}.{name}"
    __import__(module)
    found: Verb = sys.modules[module].VERB
    return found


def commands() -> dict[str, Command]:
    """Return all verbs for the command line, by their names."""
    return {name: verb(name).command(name) for name in VERBS}


def summary() -> dict[str, Command]:
    """Return what stands before the help that an empty command line gets."""
    from cni_common.serve.cli import Command

    def run(_options: Namespace, load: Loader, _load_all: Callable[[], object]) -> int:
        from commands import DONE, summary

        summary.write(load)
        return DONE

    return {"": Command("", run)}
