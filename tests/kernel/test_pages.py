"""Pages for operators: their transcripts show what the commands print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands.verbs import VERBS
from tests.machine import ROOT

pytestmark = [
    pytest.mark.without_engine("each page has a world of its own"),
    pytest.mark.timeout(300),
]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "docs").rglob("*.md")
    if "\n```console\n" in path.read_text()
)


@pytest.mark.parametrize("page", PAGES)
def test_transcripts(page: str) -> None:
    """Each command of the page, run in order in a world of its own, prints what the page shows."""
    words = [str(ROOT / "tests/in-sandbox"), sys.executable, "-m", "tests.pages", page]

    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_verb() -> None:
    """Each verb is in a transcript."""
    texts = [path.read_text() for path in (ROOT / "docs").rglob("*.md")]

    shown = {verb for text in texts for verb in re.findall(r"^# (?:.* )?pycni (\w+)", text, re.M)}
    assert set(VERBS) - shown == set()


def test_no_other_output() -> None:
    """The output of commands on a page for operators is a transcript."""
    pages = [*Path(ROOT, "docs/operators").glob("*.md"), Path(ROOT, "docs/operators.md")]
    pages += [Path(ROOT, f"docs/{verb}.md") for verb in VERBS]

    odd = [
        page.name
        for page in pages
        if page.exists() and "" in re.findall(r"^```(\w*)$", page.read_text(), re.M)[::2]
    ]

    assert odd == []


def test_questions() -> None:
    """docs/operators.md leads to each page, by the question that is its title."""
    index = (ROOT / "docs/operators.md").read_text()
    pages = sorted(Path(ROOT, "docs/operators").glob("*.md"))

    assert len(pages) >= 6
    for page in pages:
        title = page.read_text().partition("\n")[0].removeprefix("# ")
        assert f"[{title}](operators/{page.name})" in index
