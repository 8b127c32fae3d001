"""The single executable: the name it is called by selects the plugin."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cni_common.serve.main import main
from plugins import load, load_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cni_common.serve.cli import Command


def run() -> int:
    """Serve one request and return the exit status."""
    return main(load, load_all, _commands, {("dhcp", "daemon"): _dhcp_daemon})


def _commands() -> Mapping[str, Command]:
    from commands import COMMANDS

    return COMMANDS


def _dhcp_daemon(
    arguments: Sequence[str], environ: Mapping[str, str], log: Callable[[str], object]
) -> int:
    from plugins.dhcp.daemon import program

    return program.run(arguments, environ, log)


if __name__ == "__main__":
    sys.exit(run())
