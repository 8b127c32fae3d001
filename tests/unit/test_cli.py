"""The command line of `pycni`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from agent import install_command
from cni_common.serve.cli import COMMANDS, ENGINE_SOCKET, run
from cni_common.spec.names import VERSION
from commands.verbs import VERBS, commands
from plugins import load, load_all

ROOT = Path(__file__).resolve().parents[2]


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`pycni version` tells what runs, and where it keeps what."""
    monkeypatch.setattr(sys, "argv", ["/opt/cni/bin/pycni", "version"])

    assert run(["version"], load, load_all) == 0

    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows == {
        "version": VERSION,
        "build": "sources",
        "python": sys.version.partition(" ")[0],
        "plugins": "/opt/cni/bin",
        "bundle": "none",
        "engine": "none: none serves",
        "socket": "/run/pycni/engine.sock",
        "state": "/run/pycni",
    }


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Without arguments, and with --help, it lists its commands."""
    assert (run([], load, load_all), run(["--help"], load, load_all)) == (0, 0)

    printed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        lines = re.findall(rf"^    {name} ", printed, re.MULTILINE)
        assert len(lines) == printed.count(command.summary) == 2


@pytest.mark.parametrize("name", [*COMMANDS, *VERBS, *install_command.COMMANDS])
def test_help_fits(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal of 80 columns shows each line of the help whole, but for examples."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run([name, "--help"], load, load_all, {**commands(), **install_command.COMMANDS}) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [one for one in lines if len(one) > 80 and not one.startswith("  pycni ")] == []


def test_version_option(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints name and version alone."""
    assert run(["--version"], load, load_all) == 0
    assert capsys.readouterr().out == f"pycni {VERSION}\n"


def test_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown command is refused on stderr."""
    assert run(["frobnicate"], load, load_all) == 2

    printed = capsys.readouterr()
    assert (printed.out, "frobnicate" in printed.err) == ("", True)


def test_one_version() -> None:
    """cni_common.spec.names has the version; the package takes it from there, and pages name it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    dynamic = project["tool"]["setuptools"]["dynamic"]
    changes = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## (\d\S+) \(\d{4}-\d\d-\d\d\)$", changes, re.MULTILINE)
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = re.compile(r"(?:/pycni:|newTag: |ref: v|/pycni-|pycni_)(\d+\.\d+\.\d+)")

    assert dynamic == {"version": {"attr": "cni_common.spec.names.VERSION"}}
    assert project["project"]["dynamic"] == ["version"]
    assert released[0] == VERSION
    found = {path.name: set(named.findall(path.read_text())) for path in pages}
    assert found["kubernetes.md"] == {VERSION}
    assert set().union(*found.values()) == {VERSION}


def test_one_socket() -> None:
    """The engine's socket is where the launcher looks for it."""
    source = (ROOT / "launcher/launcher.c").read_text()

    assert re.findall(r'#define SOCKET "(.*)"', source) == [ENGINE_SOCKET]
