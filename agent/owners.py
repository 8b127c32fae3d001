"""Two that install plugins into one directory: the node itself, and the agent of a cluster.

The node's plugins are those of `make install` or of a package. Each of the two leaves a symbolic
link beside the bundles, whose text is its build; the link leads nowhere. The last to install has
the launchers. The other's build stays, and gets the launchers back when the last one is
uninstalled. The module uses the standard library alone, as agent/install.py does.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NODE, AGENT = "node", "agent"
_PREFIX = "build:"  # so that the link leads nowhere, and is not taken for a bundle


def note(store: Path, owner: str, build: str) -> None:
    """Note the build of an owner in `store`, the directory of the bundles. Raises OSError."""
    text = f"{_PREFIX}{build}"
    place = store / owner
    with suppress(OSError):
        if os.readlink(place) == text:
            return
    new = store / f"{owner}.pycni-new"
    new.unlink(missing_ok=True)
    new.symlink_to(text)
    new.replace(place)


def forget(store: Path, owner: str) -> None:
    """Note that an owner has no plugins any more. Raises OSError."""
    (store / owner).unlink(missing_ok=True)


def forget_all(store: Path) -> None:
    """Remove all notes, also of a build that is no more. Raises OSError."""
    for owner in (NODE, AGENT):
        forget(store, owner)


def builds(store: Path) -> dict[str, str]:
    """Return the build of each owner whose launchers are still in `store`."""
    found = {}
    for owner in (NODE, AGENT):
        with suppress(OSError):
            build = os.readlink(store / owner).removeprefix(_PREFIX)
            if (store / build / "launcher/pycni").exists():
                found[owner] = build
    return found
