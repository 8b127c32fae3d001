"""The command line of `pycni topology`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE
from commands.verb import OnTheNode, Verb, add_node_options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from cni_common.node.host import Host


def _run(options: Namespace, host: Host) -> int:
    from commands import topology

    return topology.run(options, host)


def _add_options(parser: ArgumentParser) -> None:
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--svg", default="", metavar="FILE", help="draw it into FILE; - is stdout")
    forms.add_argument("--dot", action="store_true", help="print a graph for Graphviz")
    forms.add_argument("--mermaid", action="store_true", help="print a flowchart for Mermaid")
    add_node_options(parser)


VERB = Verb(
    "draw the containers' network of this node",
    OnTheNode(_run),
    {DONE: "done"},
    (
        "pycni topology",
        "pycni topology --svg node.svg",
        "pycni topology --dot | dot -Tpng >node.png",
        "pycni topology --mermaid",
    ),
    _add_options,
)
