"""The command line of `pycni lint`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE, FOUND
from commands.verb import Verb, add_json_option

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from cni_common.node.host import Loader

_DIRECTORY = "/etc/cni/net.d"


def _run(options: Namespace, load: Loader) -> int:
    from commands.lint import run

    return run.run(options, load)


def _add_options(parser: ArgumentParser) -> None:
    from commands.lint.report import FORMATS

    parser.add_argument(
        "paths",
        nargs="*",
        default=[_DIRECTORY],
        metavar="FILE|DIR",
        help=f"configurations, or directories of them (default: {_DIRECTORY})",
    )
    parser.add_argument(
        "--format",
        default="text",
        choices=tuple(FORMATS),
        help="text for people, json for programs, github or sarif for a code host (default: text)",
    )
    parser.add_argument(
        "--node",
        action="store_true",
        help="also compare with this node: plugins, interfaces, subnets, the runtime's choice",
    )
    parser.add_argument(
        "--path",
        action="append",
        metavar="DIR",
        help="with --node: a directory of plugins, before those of the runtimes found here",
    )
    add_json_option(parser)


VERB = Verb(
    "find what is wrong in configuration files",
    _run,
    {DONE: "clean", FOUND: "something was found"},
    (
        "pycni lint",
        "pycni lint conf/55-portmap.conflist",
        "pycni lint --format github conf",
        "pycni lint --node --json /etc/cni/net.d",
    ),
    _add_options,
    "Needs neither root nor a node. docs/lint.md explains each code.",
)
