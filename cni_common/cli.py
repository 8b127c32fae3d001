"""The command line of `pycni`: what people and service managers ask of the suite."""

import os
import sys

from cni_common.host import STATE_DIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Sequence

    from cni_common.host import Loader

VERSION = "0.1.0"  # as in pyproject.toml
ENGINE_SOCKET = f"{STATE_DIR}/engine.sock"  # as in launcher/launcher.c


class Command:
    """One sub-command: what it is for, what it does, and which options it has."""

    def __init__(
        self,
        summary: str,
        run: "Callable[[Namespace, Loader], int]",
        add_options: "Callable[[ArgumentParser], object]" = lambda _parser: None,
    ) -> None:
        self.summary = summary
        self.run = run
        self.add_options = add_options


def run(arguments: "Sequence[str]", load: "Loader") -> int:
    """Do what `arguments` say and return the exit status, 2 when they say nothing sensible."""
    from argparse import ArgumentParser

    parser = ArgumentParser(prog="pycni", description=f"pycni {VERSION}, CNI plugins in Python")
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_options(
            parsers.add_parser(name, help=command.summary, description=command.summary)
        )
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:  # after --help, or an error that it has told
        return int(end.code or 0)
    if options.command is None:
        parser.print_help()
        return 0
    return COMMANDS[options.command].run(options, load)


def _version(_options: "Namespace", _load: "Loader") -> int:
    # PyInstaller's bootloader sets _MEIPASS.
    bundle = os.path.dirname(sys.executable) if hasattr(sys, "_MEIPASS") else ""
    rows = {
        "version": VERSION,
        "build": os.path.basename(bundle) or "none, these are the sources",
        "plugins": os.path.dirname(os.path.realpath(sys.argv[0])),
        "bundle": bundle or "none",
        "engine": ENGINE_SOCKET,
        "state": STATE_DIR,
    }
    print("".join(f"{name:8} {value}\n" for name, value in rows.items()), end="")
    return 0


COMMANDS = {
    "version": Command("print version, build and paths", _version),
}
