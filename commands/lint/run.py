"""The course of `pycni lint`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from commands import DONE, FOUND
from commands.lint import chain, files, keys, report, values

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from cni_common.node.host import Loader
    from commands.lint.files import File
    from commands.lint.rules import Finding


def run(options: Namespace, load: Loader) -> int:
    """Print what is wrong in the files; FOUND if there is anything, else DONE."""
    read, findings = check(options.paths, load, options.path or () if options.node else None)
    report.FORMATS["json" if options.json else options.format](read, findings)
    return FOUND if findings else DONE


def check(
    paths: Sequence[str], load: Loader, bin_dirs: Sequence[str] | None = None
) -> tuple[list[File], list[Finding]]:
    """Return the files at `paths`, and what is wrong in them, in the order of the files.

    With `bin_dirs`, which may be empty, they are also compared with this node. Raises
    RefusedError for a path that cannot be read.
    """
    read = files.gather(paths)
    facts = []
    for one in read:
        keys.check(one, load)
        chain.check(one)
        facts += values.check(one, load)
    values.check_together(facts)
    for directory in filter(os.path.isdir, paths):
        inside = [one for one in read if os.path.dirname(one.path) == directory.rstrip("/")]
        chain.check_first(inside)
    if bin_dirs is not None:
        from commands.lint import node

        node.check(read, load, bin_dirs)
    findings = [found for one in read for found in sorted(set(one.findings))]
    return read, findings
