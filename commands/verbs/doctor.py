"""The command line of `pycni doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE, FOUND, LACKING
from commands.verb import OnTheNode, Verb, add_node_options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from cni_common.node.host import Host


def _run(options: Namespace, host: Host) -> int:
    from commands.doctor import run

    return run.run(options, host)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="DIR",
        help="directories of configurations (default: those of the runtimes found here)",
    )
    parser.add_argument(
        "--path",
        action="append",
        metavar="DIR",
        help="a directory of plugins, before those of the runtimes; may be given several times",
    )
    add_node_options(parser)


VERB = Verb(
    "look at this node, with the remedy of each thing that is not right",
    OnTheNode(_run),
    {DONE: "everything is right", FOUND: "there are warnings", LACKING: "there are errors"},
    ("pycni doctor", "pycni doctor --json", "pycni doctor conf --path dist/bin"),
    _add_options,
)
