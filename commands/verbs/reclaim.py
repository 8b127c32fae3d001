"""The command line of `pycni reclaim`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE, FOUND
from commands.verb import OnTheNode, Verb, add_node_options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from cni_common.node.host import Host


def _run(options: Namespace, host: Host) -> int:
    from commands import reclaim

    return reclaim.run(options, host)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="remove and note nothing, say what would go"
    )
    add_node_options(parser)


VERB = Verb(
    "remove what belongs to no living container",
    OnTheNode(_run, removes=True),
    {
        DONE: "nothing is left that this command would ever remove",
        FOUND: "something waits for a later call (with --dry-run: or would be removed now)",
    },
    ("pycni reclaim --dry-run", "pycni reclaim || { sleep 60; pycni reclaim; }"),
    _add_options,
    "An object without a container is noted by the first call and removed by a call at least 60 s\n"
    "later. Younger objects, and those of a living network namespace, stay.",
)
