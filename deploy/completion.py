"""Write docs/completion and docs/man: what shells and man(1) know of the command line of `pycni`.

python -m deploy.completion
"""

from __future__ import annotations

from argparse import Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import shtab

from agent import install_command
from cni_common.serve import cli
from cni_common.spec.names import VERSION
from commands import verbs

ROOT = Path(__file__).resolve().parents[1]
_SHELLS = {
    "bash": "pycni",
    "zsh": "_pycni",
    "fish": "pycni.fish",
}  # files by the names they look for
_FILES = ("FILE", "FILE|DIR")  # metavars that stand for paths
_DIRECTORIES = ("DIR",)
_MARK = "# Written by `python -m deploy.completion` with shtab: do not edit."
_FILES_OF_PYCNI = {
    "/etc/cni/net.d": "configurations",
    "/opt/cni/bin": "plugins",
    "/run/pycni": "records of attachments, the engine's socket",
    "/var/lib/cni/networks": "leases of host-local",
}


def files() -> Mapping[Path, str]:
    """Return the content of each file."""
    texts = {ROOT / "docs/completion" / name: _completion(shell) for shell, name in _SHELLS.items()}
    return {**texts, ROOT / "docs/man/pycni.1": manual(_parser())}


def _parser() -> ArgumentParser:
    parser = cli.make_parser({**cli.COMMANDS, **verbs.commands(), **install_command.COMMANDS})
    for _, command in _commands(parser):
        for action in command._actions:
            if action.metavar in (*_FILES, *_DIRECTORIES):
                is_directory = action.metavar in _DIRECTORIES
                place: Any = action
                place.complete = shtab.DIRECTORY if is_directory else shtab.FILE
    return parser


def _completion(shell: str) -> str:
    text: str = shtab.complete(_parser(), shell)
    first, newline, rest = text.partition("\n")
    if first.startswith("#compdef"):  # has to be the first line
        return f"{first}\n{_MARK}{newline}{rest.rstrip()}\n"
    return f"{_MARK}\n{text.rstrip()}\n"


def manual(parser: ArgumentParser) -> str:
    """Return the manual page, in the macros of man(7)."""
    lines = [
        f'.\\" {_MARK.removeprefix("# ")}',
        f'.TH PYCNI 1 "" "pycni {VERSION}" "CNI plugins in Python"',
        ".SH NAME",
        "pycni \\- look after the networks of containers on this node",
        ".SH SYNOPSIS",
        ".B pycni",
        "\\fICOMMAND\\fR [\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]...",
        ".SH DESCRIPTION",
        _escaped(parser.description or ""),
        "Each command has \\fB\\-\\-help\\fR.",
        ".SH COMMANDS",
    ]
    for name, command in _commands(parser):
        lines += _of_command(name, command)
    lines.append(".SH FILES")
    for path, what in _FILES_OF_PYCNI.items():
        lines += [".TP", f".I {_escaped(path)}", what]
    lines += [".SH SEE ALSO", ".BR nft (8),", ".BR ip (8)"]
    return "\n".join(lines) + "\n"


def _commands(parser: ArgumentParser) -> Iterator[tuple[str, ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            yield from action.choices.items()


def _of_command(name: str, command: ArgumentParser) -> Iterator[str]:
    yield f".SS pycni {_escaped(name)}"
    yield f"{_escaped(command.description or '')}."
    for action in command._actions:
        if "--help" in action.option_strings:
            continue
        text = command._get_formatter()._expand_help(action)
        yield from (".TP", _invocation(action), _escaped(text))
    epilog = (command.epilog or "").strip("\n")
    if epilog:
        yield from (".PP", ".nf", *(_escaped(line) for line in epilog.splitlines()), ".fi")


def _invocation(action: Action) -> str:
    names = ", ".join(f"\\fB{_escaped(one)}\\fR" for one in action.option_strings)
    metavar = str(action.metavar or ",".join(map(str, action.choices or ())) or action.dest.upper())
    value = "" if action.nargs == 0 else f"\\fI{_escaped(metavar)}\\fR"
    return " ".join(filter(None, (names, value)))


def _escaped(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main() -> None:
    """Write the files."""
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
