"""The command line of `pycni audit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE, FOUND, LACKING
from commands.verb import OnTheNode, Verb, add_node_options

if TYPE_CHECKING:
    from argparse import Namespace

    from cni_common.node.host import Host


def _run(options: Namespace, host: Host) -> int:
    from commands import audit

    return audit.run(options, host)


VERB = Verb(
    "list what belongs to no living container",
    OnTheNode(_run),
    {
        DONE: "nothing was found",
        FOUND: "something belongs to no living container",
        LACKING: "a living container lacks something; there may be other findings, too",
    },
    (
        "pycni audit",
        "pycni audit --json",
        'pycni audit >/dev/null || echo "something is left on this node"',
    ),
    add_node_options,
)
