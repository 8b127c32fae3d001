"""Kubernetes' own tests: the page has what is left out of them, and which reports are failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kubernetes.upstream import report, suite
from tests.machine import ROOT, Json


def test_the_page_has_what_is_left_out() -> None:
    """docs/kubernetes.md tells each reason."""
    page = (ROOT / "docs/kubernetes.md").read_text()
    assert [reason for reason in suite.LEFT_OUT.values() if reason not in page] == []


def _spec(kind: str, state: str, message: str = "") -> Json:
    return {
        "ContainerHierarchyTexts": ["Network"],
        "LeafNodeText": state,
        "LeafNodeType": kind,
        "State": state,
        "RunTime": 1_500_000_000,
        **({"Failure": {"Message": message}} if message else {}),
    }


def _found(tmp_path: Path, *specs: Json) -> list[report.Outcome]:
    path = tmp_path / "report.json"
    path.write_text(json.dumps([{"SpecReports": specs}]))
    return report.outcomes(path)


def test_a_test_that_was_not_chosen_is_no_outcome(tmp_path: Path) -> None:
    """One that skips itself is: it has a reason."""
    found = _found(
        tmp_path,
        _spec("It", "passed"),
        _spec("It", "skipped"),
        _spec("It", "skipped", "needs two zones"),
        _spec("BeforeSuite", "passed"),
    )

    assert found == [
        report.Outcome("Network passed", "passed", "", 1.5),
        report.Outcome("Network skipped", "skipped", "needs two zones", 1.5),
    ]
    report.judge(found)


@pytest.mark.parametrize("kind", ["It", "BeforeSuite"])
@pytest.mark.parametrize("state", ["failed", "panicked", "timedout", "interrupted", "aborted"])
def test_all_that_did_not_pass_fails(tmp_path: Path, kind: str, state: str) -> None:
    """A failure of the set-up counts, too."""
    found = _found(tmp_path, _spec("It", "passed"), _spec(kind, state, "no answer"))

    with pytest.raises(AssertionError, match="no answer"):
        report.judge(found)


def test_a_run_of_nothing_fails(tmp_path: Path) -> None:
    """As when a pattern matches no test any more."""
    with pytest.raises(AssertionError):
        report.judge(_found(tmp_path, _spec("It", "skipped")))
