"""The single executable: the name it is called by selects the plugin."""

import sys

from cni_common.main import main
from plugins import load, load_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_common.cli import Command


def run() -> int:
    """Serve one request and return the exit status."""
    return main(load, load_all, _commands)


def _commands() -> "Mapping[str, Command]":
    from commands import COMMANDS  # noqa: PLC0415 - only for people

    return COMMANDS


if __name__ == "__main__":
    sys.exit(run())
