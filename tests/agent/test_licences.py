"""NOTICE names the packages in the agent's program, which carries their licences."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest

from deploy import freeze_agent
from tests.machine import ROOT

pytestmark = pytest.mark.timeout(300)  # may have to wait for the build


def _rows() -> dict[str, str]:
    """Return the licence of each package of the agent."""
    text = (ROOT / "NOTICE").read_text().partition("| Package of the agent |")[2]
    rows = re.findall(
        r"^\| ([a-z0-9][a-z0-9-]*) \| ([^|]+) \|$", text.partition("\n\n")[0], re.MULTILINE
    )
    return {name: licence.partition(",")[0] for name, licence in rows}


def test_each_package_has_a_row(frozen: Path) -> None:
    """No package is in the program without a row, and none has a row without being in it."""
    rows = _rows()

    assert {re.sub(r"[-_.]+", "-", name).lower() for name in freeze_agent.packages()} == rows.keys()
    directories = sorted((frozen.parent / "licences").iterdir())
    assert {re.sub(r"[-_.]+", "-", one.name).lower() for one in directories} == rows.keys()
    assert [one.name for one in directories if not list(one.iterdir())] == []


def test_licences_are_those_that_the_packages_declare(frozen: Path) -> None:
    """NOTICE states a licence that the package's own metadata offers."""
    wrong = {}
    for name, licence in _rows().items():
        metadata = distribution(name).metadata
        declared = metadata["License-Expression"] or metadata["License"]
        if licence not in declared:
            wrong[name] = declared
    assert wrong == {}
