"""The reports of ginkgo, which runs the tests of Kubernetes and of critest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.machine import Json

_FINE = ("passed", "skipped", "pending")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a test."""

    name: str
    state: str  # passed, skipped, or one of several kinds of failures
    text: str  # why it failed or was skipped
    seconds: float

    @property
    def failed(self) -> bool:
        """Tell whether it has failed."""
        return self.state not in _FINE


def outcomes(path: Path) -> list[Outcome]:
    """Return what a report in JSON has of the tests that were chosen. Raises OSError."""
    suites: list[Json] = json.loads(path.read_text())
    return [one for suite in suites for one in _outcomes(suite)]


def _outcomes(suite: Json) -> Iterator[Outcome]:
    """Give what became of each chosen test, and of what failed before or after all of them."""
    for spec in suite["SpecReports"]:
        text = spec.get("Failure", {}).get("Message", "")
        kind, state = spec["LeafNodeType"], spec["State"]
        left_out = state in ("skipped", "pending") and not text
        if left_out or (kind != "It" and state == "passed"):
            continue
        words = [*(spec["ContainerHierarchyTexts"] or ()), spec["LeafNodeText"] or kind]
        yield Outcome(" ".join(words), state, text, spec["RunTime"] / 1e9)


def told(found: Sequence[Outcome]) -> str:
    """Return what a person reads of a run: numbers, and each test that did not pass."""
    states = [one.state for one in found]
    lines = [", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))]
    for one in found:
        if one.state != "passed":
            text = re.sub(r"\s+", " ", one.text)[:400]
            lines.append(f"{one.state}: {one.name} ({one.seconds:.0f} s): {text}")
    return "\n".join(lines)


def judge(found: Sequence[Outcome]) -> None:
    """Require that a test has passed and that none has failed; print what there was."""
    text = told(found)
    print(text)  # noqa: T201 - pytest shows it where a test fails, or on request
    assert not [one.name for one in found if one.failed], text
    assert [one for one in found if one.state == "passed"], text
