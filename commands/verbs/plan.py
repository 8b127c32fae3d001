"""The command line of `pycni plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE, FOUND
from commands.verb import Verb, add_json_option

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from cni_common.node.host import Loader


def _run(options: Namespace, load: Loader) -> int:
    from commands.plan import run

    return run.run(options, load)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a configuration")
    parser.add_argument(
        "--args", default="", metavar="KEY=VALUE;...", help="CNI_ARGS, as a runtime passes them"
    )
    parser.add_argument(
        "--capabilities",
        default="",
        metavar="JSON",
        help="values of the runtime by capability, as CAP_ARGS of cnitool",
    )
    parser.add_argument("--container", default="plan", metavar="ID", help="(default: %(default)s)")
    parser.add_argument(
        "--interface",
        default="eth0",
        metavar="NAME",
        help="in the container (default: %(default)s)",
    )
    parser.add_argument(
        "--path",
        action="append",
        metavar="DIR",
        help="a directory of plugins, before that of this program and /opt/cni/bin",
    )
    parser.add_argument(
        "--against-node",
        action="store_true",
        help="begin with the records and leases of this node, and say what of it is there already",
    )
    add_json_option(parser)


VERB = Verb(
    "show what an ADD and its DEL would do, without doing it to this node",
    _run,
    {
        DONE: "done: this kernel can do what the file asks",
        FOUND: "ADD or DEL is refused, or would be on this node",
    },
    (
        "pycni plan /etc/cni/net.d/10-web.conflist",
        "pycni plan --args 'IgnoreUnknown=1;IP=10.1.0.9' --against-node 10-web.conflist",
        """pycni plan --capabilities '{"mac": "02:00:00:00:00:07"}' --json 10-web.conflist""",
    ),
    _add_options,
    "Runs the plugins for real, in network and mount namespaces that end with the command. The\n"
    "node's interfaces, firewall, leases and records stay as they are.",
)
