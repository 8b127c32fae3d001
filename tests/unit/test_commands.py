"""The operators' commands, as far as they need neither root nor a node."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from cni_common.serve import cli
from commands import FAILED, view
from commands.first_seen import FirstSeen
from commands.verb import OnTheNode
from commands.verbs import VERBS, commands, verb
from plugins import load, load_all
from plugins.host_local.lease import GRACE_SECONDS

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = commands()


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help of each command has its exit statuses and examples; the page has the command."""
    assert cli.run([name, "--help"], load, load_all, COMMANDS) == 0

    printed = capsys.readouterr().out
    assert COMMANDS[name].more in printed
    assert all(f"\n  {status}  " in printed for status in (0, 2, FAILED))
    pages = [page.read_text() for page in (ROOT / "docs").glob("*.md")]
    assert any(f"# pycni {name}\n" in page or f"# pycni {name} " in page for page in pages)


def test_verbs() -> None:
    """Every module of commands/verbs is in VERBS, in order, and has all that a verb must have."""
    modules = (ROOT / "commands" / "verbs").glob("[!_]*.py")

    assert sorted(path.stem for path in modules) == list(VERBS)
    for name in VERBS:
        assert 0 in verb(name).statuses
        assert all(f"pycni {name}" in line for line in verb(name).examples)
        assert max(map(len, COMMANDS[name].more.splitlines())) <= 100


def test_options_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    """The options of a verb are made for its own command line, those of all for completion."""
    whole = cli.make_parser(COMMANDS)
    one = cli.make_parser(COMMANDS, "leases")

    assert whole.parse_args(["reclaim", "--dry-run"]).dry_run
    assert one.parse_args(["leases", "--network", "a"]).network == "a"
    with pytest.raises(SystemExit):
        one.parse_args(["reclaim", "--dry-run"])
    assert "--dry-run" in capsys.readouterr().err


def test_no_name_twice() -> None:
    """No command hides another."""
    assert COMMANDS.keys().isdisjoint(cli.COMMANDS)


@pytest.mark.parametrize("name", [n for n in VERBS if isinstance(verb(n).run, OnTheNode)])
def test_not_root(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that is not root is told so in one line."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    words = [name, *["c1"] * (name in ("explain", "inspect", "repair"))]

    assert cli.run(words, load, load_all, COMMANDS) == FAILED

    printed = capfd.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "needs root" in printed.err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("c1", "c1"),
        ("é世 [red]", "é世 [red]"),
        ("\x1b[31m\n\x9b\u202e", "\\x1b[31m\\n\\x9b\\u202e"),
        (os.fsdecode(b"\xff"), "\\udcff"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    """Nothing that could steer a terminal gets to it."""
    assert view.printable(text) == shown


def test_text(capfd: pytest.CaptureFixture[str]) -> None:
    """A paragraph fits into 80 columns, but text to copy stays in one piece."""
    path = f"/var/lib/{'x' * 90}-y"

    view.write_text(f"{'word ' * 30}{path} end\x1b[31m", style="red", indent="- ", more_indent="  ")

    lines = capfd.readouterr().out.splitlines()
    assert f"  {path}" in lines
    assert all(len(line) <= 80 for line in lines if path not in line)
    assert (lines[0][:6], lines[-1]) == ("- word", "  end\\x1b[31m")


def test_page(capfd: pytest.CaptureFixture[str]) -> None:
    """A page fits into 80 columns, with any text to copy; a word that does not fit stays whole."""
    address, pod = "2001:db8:1234:5678:9abc:def0:1234:2", f"shop/{'w' * 63}"
    path = f"/run/{'x' * 90}"

    view.write_page(
        [
            ("container c1", ""),
            ("pod", pod),
            ("10.22.0.2", f"eth0 on network {'a ' * 40}"),
            (address, "eth0, alive, since 2026-11-30T01:13:13Z"),
            ("host-local", "short"),
            ("record", path),
        ]
    )

    lines = capfd.readouterr().out.splitlines()
    assert lines[:4] == ["container c1", "  pod", f"    {pod}", f"  10.22.0.2   {lines[3][14:]}"]
    assert lines[4].startswith(" " * 14 + "a")
    assert lines[5:8] == [
        f"  {address}",
        f"{' ' * 14}eth0, alive, since 2026-11-30T01:13:13Z",
        "  host-local  short",
    ]
    assert lines[8] == f"  record      {path}"
    assert all(len(line) <= 80 for line in lines[:-1])


class TestFirstSeen:
    """Two sightings, a grace time apart, with nothing in between."""

    def test_first(self, tmp_path: Path) -> None:
        """The first sighting is none of two, nor is one just after it."""
        for _ in range(2):
            seen = FirstSeen(str(tmp_path / "run"))
            assert not seen.is_second("a")
            seen.remember(["a"])

    def test_second(self, tmp_path: Path) -> None:
        """An object seen a grace time ago has been seen twice, unless it was gone meanwhile."""
        ago = time.clock_gettime(time.CLOCK_BOOTTIME) - GRACE_SECONDS
        (tmp_path / "reclaim.json").write_text(json.dumps({"a": ago, "b": ago, "c": ago + 5}))

        seen = FirstSeen(str(tmp_path))

        assert [seen.is_second(key) for key in "abcd"] == [True, True, False, False]
        seen.remember(["a"])
        again = FirstSeen(str(tmp_path))
        assert [again.is_second(key) for key in "ab"] == [True, False]
        assert (tmp_path / "reclaim.json").stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", '{"a": "x"}', '{"a": 1e300}', '{"a": null}', "é"]
    )
    def test_damaged(self, tmp_path: Path, text: str) -> None:
        """A damaged file, or one of the future, counts as none."""
        (tmp_path / "reclaim.json").write_text(text)

        assert not FirstSeen(str(tmp_path)).is_second("a")

    def test_nothing_to_remember(self, tmp_path: Path) -> None:
        """No file is made for nothing."""
        FirstSeen(str(tmp_path)).remember([])

        assert list(tmp_path.iterdir()) == []
