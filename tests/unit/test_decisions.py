"""docs/decisions.md: its index names each entry, and a mark leads to a later one."""

from __future__ import annotations

import re

from tests.machine import ROOT

TEXT = (ROOT / "docs/decisions.md").read_text()
ROW = re.compile(r"^\| \[(\d+)\]\(#(.+?)\) \| (.+?) \| .+ \| (.+) \|$", re.MULTILINE)
HEADING = re.compile(r"^## ((\d+)\. (.+) \(\d{4}-\d\d-\d\d\))$", re.MULTILINE)


def _anchor(heading: str) -> str:
    """Return the fragment that a forge gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_index_has_each_entry() -> None:
    """Numbers, titles and links of the index are those of the entries, in their order."""
    entries = [
        (number, _anchor(heading), title) for heading, number, title in HEADING.findall(TEXT)
    ]
    rows = [(number, anchor, title) for number, anchor, title, _ in ROW.findall(TEXT)]

    assert [int(number) for number, _, _ in entries] == list(range(1, len(entries) + 1))
    assert rows == entries


def test_links_inside_lead_to_the_entry_that_they_name() -> None:
    """The number in brackets is that of a heading, and the fragment is the heading's."""
    anchors = {number: _anchor(heading) for heading, number, _ in HEADING.findall(TEXT)}
    links = re.findall(r"\[([^\]]+)\]\(#([^)]+)\)", TEXT)

    wrong = [(number, anchor) for number, anchor in links if anchors.get(number) != anchor]

    assert len(links) > len(anchors)  # the index has one for each, entries have more
    assert wrong == []


def test_a_superseded_entry_says_so() -> None:
    """Its status names later entries, and stands below its heading, too."""
    for number, _, _, status in ROW.findall(TEXT):
        if "superseded" not in status:
            continue
        by = re.findall(r"\d+", status)
        assert all(int(number) < int(later) for later in by), number
        heading = re.search(rf"^## {number}\. .*\n\n\*(.+)\.\*$", TEXT, re.MULTILINE)
        assert heading, number
        assert heading[1].lower() == status.lower(), number
