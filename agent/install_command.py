"""`pycni install` and `pycni uninstall`: a node needs neither make nor Python for them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agent import install
from cni_common.node.plugin_files import own_build
from cni_common.serve.cli import Command

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from cni_common.node.host import Loader

_EXAMPLES = """\
The engine is as ENGINE says: systemd, on-demand or none. Without it the choice
before is kept; at first it is systemd where that runs, otherwise on-demand.

The plugins are replaced by atomic renames, so containers may start meanwhile. A
plugin of another vendor that has the same name is kept, and `pycni uninstall`
brings it back.

examples:
  ./pycni install
  ./pycni install /usr/lib/cni
  ENGINE=none ./pycni install
"""


def _run(word: str) -> Callable[[Namespace, Loader, Callable[[], object]], int]:
    def command(options: Namespace, _load: Loader, _load_all: Callable[[], object]) -> int:
        return install.main([word], {**_places(options), "ENGINE": os.environ.get("ENGINE", "")})

    return command


def _places(options: Namespace) -> dict[str, str]:
    """Return what agent/install.py is to know of places; in a checkout it finds its own."""
    places = {"CNI_BIN_DIR": options.directory}
    if own_build():
        bundle = Path(sys.executable).resolve().parent
        places |= {"DIST": str(bundle.parents[1]), "UNITS": str(bundle / "units")}
        places |= {"SHARE_DIR": install.NO_SHARE}  # a package has what belongs there
    if options.without_units:
        places["UNITS"] = "none"
    return places


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "directory",
        metavar="DIR",
        nargs="?",
        default=install.BIN_DIR,
        help="the runtimes' directory of plugins (default: %(default)s)",
    )
    parser.add_argument(
        "--without-units", action="store_true", help="leave systemd's units to a package"
    )


COMMANDS = {
    "install": Command(
        "put the plugins beside this program where the runtimes look for them",
        _run("install"),
        _add_options,
        _EXAMPLES,
    ),
    "uninstall": Command(
        "take away what `pycni install` has put there, and bring back what it replaced",
        _run("uninstall"),
        _add_options,
    ),
}
