"""The command line of `pycni leases`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE
from commands.verb import OnTheNode, Verb, add_node_options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from cni_common.node.host import Host


def _run(options: Namespace, host: Host) -> int:
    from commands import leases

    return leases.run(options, host)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--network", default="", metavar="NAME", help="of this network only")
    add_node_options(parser)


VERB = Verb(
    "list the addresses that are given out",
    OnTheNode(_run),
    {DONE: "done, whether there are leases or not"},
    ("pycni leases", "pycni leases --network mynet", "pycni leases --json"),
    _add_options,
)
