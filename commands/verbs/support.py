"""The command line of `pycni support`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE
from commands.verb import OnTheNode, Verb, add_node_options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from cni_common.node.host import Host

CONF_DIR = "/etc/cni/net.d"


def _run(options: Namespace, host: Host) -> int:
    from commands import support

    return support.run(options, host)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        default="",
        metavar="FILE",
        help="the archive, a zip file that must not exist (default: pycni-support-HOST-TIME.zip)",
    )
    parser.add_argument(
        "--conf-dir",
        default="",
        metavar="DIR",
        help="the directory of configurations (default: those of the runtimes that are found here,"
        f" and {CONF_DIR})",
    )
    add_node_options(parser)


VERB = Verb(
    "write one archive for a bug report, without secrets",
    OnTheNode(_run),
    {DONE: "the archive is written; this node may still have problems"},
    ("pycni support", "pycni support -o report.zip"),
    _add_options,
)
