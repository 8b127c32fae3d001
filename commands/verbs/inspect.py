"""The command line of `pycni inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE, FOUND
from commands.verb import OnTheNode, Verb, add_node_options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from cni_common.node.host import Host

_PAUSE, _PAUSE_MIN, _PAUSE_MAX = 2.0, 0.1, 86400.0  # seconds


def _run(options: Namespace, host: Host) -> int:
    from commands import inspect

    return inspect.run(options, host)


def _add_options(parser: ArgumentParser) -> None:
    from commands import lookup

    lookup.add_options(parser)
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=_PAUSE,
        metavar="SECONDS",
        help=f"show it again and again, with rates; every {_PAUSE:g} s by default",
    )
    parser.add_argument(
        "--count", type=int, default=0, metavar="N", help="with --watch: end after N pages"
    )
    add_node_options(parser)


def _seconds(text: str) -> float:
    value = float(text)
    if not _PAUSE_MIN <= value <= _PAUSE_MAX:
        raise ValueError
    return value


_seconds.__name__ = "number of seconds"  # for argparse's messages

VERB = Verb(
    "show a container's interfaces, counters, ports, connections and sockets",
    OnTheNode(_run),
    {
        DONE: "done, and everything that the plugins have made is there",
        FOUND: "something that they have made is missing",
    },
    (
        "pycni inspect 3f2c9a",
        "pycni inspect shop/web-5d4f8 --watch",
        "pycni inspect --by pid 4711 --json",
    ),
    _add_options,
)
