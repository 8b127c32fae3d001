"""The command line of `pycni trace`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE, FOUND
from commands.verb import OnTheNode, Verb, add_node_options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from cni_common.node.host import Host


def _run(options: Namespace, host: Host) -> int:
    from commands import trace

    return trace.run(options, host)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "container",
        nargs="?",
        default="",
        metavar="CONTAINERID",
        help="calls of this container only; the beginning of its id is enough",
    )
    parser.add_argument(
        "--last",
        type=_positive,
        default=0,
        metavar="N",
        help="the last N calls only (default: all that are noted)",
    )
    parser.add_argument(
        "--slow",
        type=_milliseconds,
        default=0.0,
        metavar="MS",
        help="calls that took so long or longer",
    )
    parser.add_argument("--failed", action="store_true", help="calls that failed")
    parser.add_argument(
        "--otlp",
        default="",
        metavar="FILE|URL",
        help="export in OpenTelemetry's JSON, to a file, '-', or a collector's URL",
    )
    add_node_options(parser)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _milliseconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


_positive.__name__ = "positive number"  # for argparse's messages
_milliseconds.__name__ = "number of milliseconds"

VERB = Verb(
    "show what the last calls of plugins did, and how long each step took",
    OnTheNode(_run),
    {DONE: "done", FOUND: "no call is noted that is as asked for"},
    (
        "pycni trace --last 5",
        "pycni trace 3f2c9a",
        "pycni trace --slow 500",
        "pycni trace --otlp http://localhost:4318",
    ),
    _add_options,
    "Each call of a plugin leaves a line below /run/pycni, of which about the last two thousand\n"
    "are kept.",
)
