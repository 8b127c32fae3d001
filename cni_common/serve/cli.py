"""The command line of `pycni`, for people and service managers."""

from __future__ import annotations

import os
import sys
from errno import EAGAIN
from typing import TYPE_CHECKING

from cni_common.node.host import STATE_DIR
from cni_common.serve.stdio import say
from cni_common.spec.names import VERSION

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Mapping, Sequence

    from cni_common.node.host import Loader

_OPTION_MAX = 1e6

ENGINE_SOCKET = f"{STATE_DIR}/engine.sock"  # as in launcher/launcher.c


class Command:
    """One sub-command: its summary, its function and its options."""

    def __init__(
        self,
        summary: str,
        run: Callable[[Namespace, Loader, Callable[[], object]], int],
        add_options: Callable[[ArgumentParser], object] = lambda _parser: None,
        more: str = "",
    ) -> None:
        """`more` follows the options in the help, verbatim: exit codes, examples."""
        self.summary = summary
        self.run = run
        self.add_options = add_options
        self.more = more


def run(
    arguments: Sequence[str],
    load: Loader,
    load_all: Callable[[], object],
    commands: Mapping[str, Command] | None = None,
) -> int:
    """Run the command in `arguments` and return the exit status, 2 for invalid arguments.

    `commands` are the commands that need the plugins; COMMANDS are always known. One without a name
    runs before the help that an empty command line gets.
    """
    known = {**COMMANDS, **(commands or {})}
    nameless = known.pop("", None)
    parser = make_parser(known, arguments[0] if arguments else "")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:  # after --help, or an error that argparse has printed
        return int(end.code or 0)
    if options.command is None:
        status = nameless.run(options, load, load_all) if nameless else 0
        parser.print_help()
        return status
    return known[options.command].run(options, load, load_all)


def make_parser(commands: Mapping[str, Command], only: str | None = None) -> ArgumentParser:
    """Return the parser of the command line, with the options of all commands or of `only` one."""
    from argparse import ArgumentParser, RawDescriptionHelpFormatter

    parser = ArgumentParser(
        prog="pycni",
        description=f"pycni {VERSION}, CNI plugins in Python; 'pycni agent' is the agent of a"
        " Kubernetes node, a program of its own",
    )
    parser.add_argument(
        "--version", action="version", version=f"pycni {VERSION}", help="print the version, and end"
    )
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in sorted(commands.items()):
        subparser = parsers.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=command.more,
            formatter_class=RawDescriptionHelpFormatter,
        )
        if only in (None, name):
            command.add_options(subparser)
    return parser


def _build() -> str:
    from cni_common.node.plugin_files import own_build

    return own_build() or "sources"


def _python() -> str:
    version = sys.version.partition(" ")[0]
    # A program of deploy/interpreter has this module in itself.
    return f"{version}, built for this program" if "_setns" in sys.builtin_module_names else version


def _version(_options: Namespace, _load: Loader, _load_all: Callable[[], object]) -> int:
    from cni_common.node.plugin_files import own_build
    from cni_common.serve import on_demand, status

    engine = status.look(ENGINE_SOCKET)
    rows = {
        "version": VERSION,
        "build": _build(),
        "python": _python(),
        "plugins": os.path.dirname(os.path.realpath(sys.argv[0])),
        "bundle": os.path.dirname(sys.executable) if own_build() else "none",
        "engine": f"{on_demand.choice()}: {engine.line() if engine else 'none serves'}",
        "socket": ENGINE_SOCKET,
        "state": STATE_DIR,
    }
    print("".join(f"{name:8} {value}\n" for name, value in rows.items()), end="")
    return 0


def _add_engine_options(parser: ArgumentParser) -> None:
    from cni_common.serve import on_demand
    from cni_common.serve.worker import Settings

    seconds = on_demand.idle_seconds(on_demand.choice()) or on_demand.IDLE_SECONDS
    defaults = Settings(build=_build(), idle_seconds=seconds)
    parser.add_argument(
        "--workers",
        type=_positive(int),
        metavar="N",
        help="number of processes that serve requests (default: four per processor, at most 16;"
        " with --on-demand two, at most 4)",
    )
    for option, kind, what in (
        ("--requests", _positive(int), "requests that a process serves before another replaces it"),
        ("--add-seconds", _positive(float), "seconds after which an ADD is rolled back"),
        ("--other-seconds", _positive(float), "seconds after which another command is abandoned"),
        (
            "--idle-seconds",
            _positive(float),
            "with --on-demand: seconds without a request after which the engine ends",
        ),
    ):
        default = getattr(defaults, option.removeprefix("--").replace("-", "_"))
        text = f"{what} (default: {default:g})"
        parser.add_argument(option, type=kind, default=default, metavar="N", help=text)
    parser.add_argument(
        on_demand.OPTION,
        action="store_true",
        help="leave the caller's session and control groups, serve unless another engine does, and"
        " end when the engine is of no use any more: what a call does that finds no engine",
    )
    parser.add_argument(
        "--status",
        action="store_true",
        help="tell about the engine that serves, and end: 0 if one does, else 1",
    )


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < _OPTION_MAX:
            raise ValueError
        return value

    parse.__name__ = "positive number"  # for argparse's messages
    return parse


def _engine(options: Namespace, load: Loader, load_all: Callable[[], object]) -> int:
    from cni_common.serve import engine
    from cni_common.serve.worker import ON_DEMAND_WORKERS, Settings

    if options.status:
        return _status()
    if os.geteuid():
        _log("pycni engine: needs root: it makes network interfaces")
        return 1
    others = ("command", "status")
    chosen = {name: value for name, value in vars(options).items() if name not in others}
    if options.workers is None:
        del chosen["workers"]
        if options.on_demand:
            chosen["workers"] = ON_DEMAND_WORKERS
    log: Callable[[str], object] = _log
    try:
        if options.on_demand:
            log = _detached()
        engine.serve(
            Settings(build=_build(), **chosen), ENGINE_SOCKET, load=load, load_all=load_all, log=log
        )
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        for tell in {log, _log}:
            tell(f"pycni engine: {error.strerror}{where}")
        return 1
    return 0


def _detached() -> Callable[[str], object]:
    """Detach this process from its caller; return what logs for it. Raises OSError."""
    from cni_common.serve import on_demand

    if on_demand.hold_lock() < 0:
        raise BlockingIOError(EAGAIN, "another engine on demand runs", ENGINE_SOCKET)
    for problem in on_demand.detach():
        on_demand.log(f"engine: {problem}")
    return on_demand.log


def _status() -> int:
    """Print what is known of the engine that serves."""
    from cni_common.serve import on_demand, status

    engine = status.look(ENGINE_SOCKET)
    rows = {
        "choice": on_demand.choice(),
        **(engine.rows() if engine else {"engine": "none serves"}),
    }
    print("".join(f"{name:8} {value}\n" for name, value in rows.items()), end="")
    return 0 if engine else 1


def _log(text: str) -> None:
    say(2, text)


COMMANDS = {
    "engine": Command("serve requests from a resident process", _engine, _add_engine_options),
    "version": Command("print version, build and paths", _version),
}
