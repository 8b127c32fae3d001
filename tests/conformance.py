"""Writes a program for mypy, in which each plugin's module has to be a Plugin: see `make check`."""

from __future__ import annotations

import sys
from pathlib import Path

from plugins import TYPES


def program() -> str:
    """Return the program."""
    names = [type.replace("-", "_") for type in TYPES]
    lines = (f"import plugins.{name}\n_{name}: Plugin = plugins.{name}\n" for name in names)
    return "".join(("from cni_common.node.host import Plugin\n", *lines))


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.parent.mkdir(exist_ok=True)
    file.write_text(program())
