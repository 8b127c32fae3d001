"""The command line of `pycni repair`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE, FOUND, LACKING
from commands.verb import OnTheNode, Verb, add_node_options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from cni_common.node.host import Host


RESULTS_DIR = "/var/lib/cni/results"  # of libcni, by which runtimes call


def _run(options: Namespace, host: Host) -> int:
    from commands import repair

    return repair.run(options, host)


def _add_options(parser: ArgumentParser) -> None:
    from commands import lookup

    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument(
        "container",
        nargs="?",
        default="",
        metavar="CONTAINER",
        help="its id or how that begins, or what else `pycni explain` takes",
    )
    chosen.add_argument("--all", action="store_true", help="every living container")
    parser.add_argument(
        "--by",
        default="",
        choices=tuple(lookup.FINDERS),
        help="what CONTAINER is, where it could be several",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="change nothing, say what would be")
    how.add_argument(
        "--watch",
        action="store_true",
        help="stay, and repair when the kernel tells of a change; leaves the containers' own"
        " settings alone",
    )
    parser.add_argument(
        "--results-dir",
        default=RESULTS_DIR,
        metavar="DIR",
        help="where libcni has kept results, by which a damaged record is written anew (default:"
        " %(default)s)",
    )
    add_node_options(parser)


VERB = Verb(
    "put back what living containers lack",
    OnTheNode(_run, removes=True),
    {
        DONE: "nothing is missing any more",
        FOUND: "something would be put back (with --dry-run)",
        LACKING: "something stays missing, as what only a new ADD can make",
    },
    (
        "pycni repair --all --dry-run",
        "pycni repair 3f2c9a",
        "pycni repair --all --watch",
    ),
    _add_options,
    "Puts back what CHECK and `pycni audit` find missing, by the plugins' own code: after a flush\n"
    "of the firewall, a deleted route or address, a port that left its bridge. Writes a damaged"
    " record of a living container anew, where all of it can be proven.",
)
