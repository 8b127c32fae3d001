"""The command line of `pycni metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE
from commands.verb import OnTheNode, Verb, add_node_options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from cni_common.node.host import Host


def _run(options: Namespace, host: Host) -> int:
    from commands import metrics

    return metrics.run(options, host)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--textfile",
        default="",
        metavar="FILE",
        help="write to this file, by a rename, for the textfile collector of the node exporter",
    )
    add_node_options(parser)


VERB = Verb(
    "print this node's metrics for Prometheus",
    OnTheNode(_run),
    {DONE: "done"},
    (
        "pycni metrics",
        "pycni metrics --textfile /var/lib/node_exporter/pycni.prom",
    ),
    _add_options,
    "Counts of calls are advanced by each look: look once in two thousand calls at least, such as\n"
    "by a timer each minute.",
)
