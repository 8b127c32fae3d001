"""Completion of shells and the manual page: up to date, and understood by those who read them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from commands.verbs import VERBS
from deploy.completion import ROOT, files

DIRECTORY = ROOT / "docs/completion"


def test_up_to_date() -> None:
    """`make completion` would write what is there."""
    assert [str(path) for path, text in files().items() if path.read_text() != text] == []


@pytest.mark.parametrize("path", [*files()], ids=lambda path: path.name)
def test_all_verbs(path: Path) -> None:
    """Each of them has all verbs."""
    text = path.read_text()

    assert [name for name in VERBS if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.starts_process
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pycni", "doc"], {"doctor"}),
        (["pycni", "lint", "--for"], {"--format"}),
        (["pycni", "lint", "--format", "s"], {"sarif"}),
        (["pycni", "leases", "--net"], {"--network"}),
    ],
)
def test_bash(words: list[str], expected: set[str]) -> None:
    """bash completes verbs, options and choices."""
    bash = shutil.which("bash")
    assert bash
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"""
        source {DIRECTORY / "pycni"}
        COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1} COMP_LINE="{" ".join(words)}"
        COMP_POINT=${{#COMP_LINE}}
        function=$(complete -p pycni | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=True)

    assert {one.strip() for one in done.stdout.split()} == expected


@pytest.mark.starts_process
@pytest.mark.parametrize(("shell", "name"), [("zsh", "_pycni"), ("fish", "pycni.fish")])
def test_syntax(shell: str, name: str) -> None:
    """The shell, where there is one, can read it."""
    program = shutil.which(shell)
    if not program:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run(
        [program, "-n", str(DIRECTORY / name)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.starts_process
def test_manual() -> None:
    """groff formats the page without a warning, and no line of it needs more than 100 columns."""
    groff = shutil.which("groff")
    if not groff:
        pytest.skip("groff is not installed")
    words = [groff, "-man", "-Tascii", "-P-c", "-ww", "-rLL=100n", str(ROOT / "docs/man/pycni.1")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    text = re.sub(".\b", "", done.stdout)

    assert done.stderr == ""
    assert "pycni lint" in text
    assert "exit status:" in text
    assert max(map(len, text.splitlines())) <= 110
