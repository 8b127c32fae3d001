"""The command line of `pycni explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE, FOUND
from commands.verb import OnTheNode, Verb, add_node_options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from cni_common.node.host import Host


def _run(options: Namespace, host: Host) -> int:
    from commands import explain

    return explain.run(options, host)


def _add_options(parser: ArgumentParser) -> None:
    from commands import lookup

    lookup.add_options(parser)
    parser.add_argument(
        "--kernel",
        action="store_true",
        help="also show links, addresses, routes, queues, listening sockets and connections",
    )
    add_node_options(parser)


VERB = Verb(
    "list everything that a container's attachments own",
    OnTheNode(_run),
    {
        DONE: "done, and everything is there",
        FOUND: "something is missing, or nothing is known of this container",
    },
    (
        "pycni explain 3f2c9a",
        "pycni explain --kernel 3f2c9a",
        "pycni explain --json --by id 3f2c9a",
    ),
    _add_options,
)
