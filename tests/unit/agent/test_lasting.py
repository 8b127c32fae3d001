"""Problems that last: an Event at the beginning and every half hour, by a clock of the tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest

from agent.access import Access
from agent.cluster import Member
from agent.logs import Log
from agent.loop import Loop, Parts
from agent.metrics import Metrics
from agent.pod_events import Pod, PodEvents
from agent.reports import Condition, Lasting, Reports
from tests.api_server import node, serving
from tests.waits import wait_until

HALF_HOUR = 1800.0


class Clock:
    """A monotonic clock that goes as a test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return its seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the Events."""
    made = Clock()
    monkeypatch.setattr("agent.reports.time", made)
    return made


def loop_of(watch: Any, events: list[str], folder: Path, **parts: Any) -> Loop:
    """Return a loop that knows no cluster, and whose Events come into a list."""

    def event(_reason: str, text: str) -> bool:
        events.append(text)
        return True

    found = {
        "watch": watch,
        "remembered": SimpleNamespace(load=lambda _node: None),
        "reports": SimpleNamespace(event=event),
        "metrics": Metrics(folder / "leases"),
        "log": Log("error"),
        "bin_dir": folder,
        "dist": None,
        "engine": None,
        "before": lambda: None,
        **parts,
    }
    return Loop(cast("Parts", SimpleNamespace(**found)), "a")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins are there."""
    monkeypatch.setattr("agent.install.installed", lambda _directory: "a-build")


@pytest.mark.usefixtures("installed")
def test_a_problem_that_lasts(clock: Clock, tmp_path: Path) -> None:
    """Its Event comes every half hour for days, not when it is over, and when it is back."""
    events: list[str] = []
    watch = SimpleNamespace(snapshot=None, lacks_own=True, failure="")
    loop = loop_of(watch, events, tmp_path)

    for _ in range(2 * 24 * 60):  # a round each minute
        loop.round(frozenset())
        clock.now += 60

    assert len(events) == 2 * 24 * 2
    assert {*events} == {events[0]}
    assert "there is no Node 'a'" in events[0]

    watch.lacks_own = False
    clock.now += HALF_HOUR
    loop.round(frozenset())
    assert len(events) == 96
    watch.lacks_own = True
    loop.round(frozenset())
    assert len(events) == 97


@pytest.mark.usefixtures("clock", "installed")
def test_an_engine_that_never_serves(tmp_path: Path) -> None:
    """Each round starts one and waits for it in vain, which is one problem, not one a round."""
    events: list[str] = []
    engine = SimpleNamespace(
        build=lambda: "", ensure=lambda _build: (), await_start=lambda: ("it does not serve",)
    )
    watch = SimpleNamespace(snapshot=None, lacks_own=False, failure="")
    loop = loop_of(watch, events, tmp_path, engine=engine)

    for _ in range(5):
        loop.round(frozenset())

    assert events == ["it does not serve"]


def test_each_has_a_time_of_its_own(clock: Clock) -> None:
    """A thing that is over is forgotten; a later one is due later."""
    lasting = Lasting()

    def due(*found: str) -> list[str]:
        those = lasting.due(found)
        for one in those:
            lasting.note(one)
        return those

    assert due("a") == ["a"]
    clock.now += HALF_HOUR - 1
    assert due("a", "b") == ["b"]
    clock.now += 1
    assert due("a", "b") == ["a"]
    assert due("b") == []
    assert due("a", "b") == ["a"]


def test_while_the_api_server_is_away(tmp_path: Path) -> None:
    """A problem that lasts as long waits as one Event: others stay in the queue."""
    with serving([node(0)]) as server:
        access = Access(kubeconfig=server.kubeconfig(tmp_path))
        metrics = Metrics(tmp_path / "leases")
        reports = Reports(access.connect, "node-00000", log=Log("error"), metrics=metrics)
        for _ in range(100):
            reports.event("Overlap", "words")
        reports.event("Overlap", "other words")
        reports.start()

        wait_until(lambda: len(server.taken) == 2, "not both Events come")

    assert [event["message"] for _, event in server.taken] == ["words", "other words"]


def test_more_pods_than_the_pace_allows(clock: Clock) -> None:
    """Each of 250 pods gets its Event before one gets a second, half an hour later."""
    pods = {f"c{number}": Pod("default", f"p{number}", f"u{number}") for number in range(250)}
    told: list[str] = []
    left = 0  # of the pace, in this round

    def event(_reason: str, _text: str, *, pod: Pod) -> bool:
        nonlocal left
        left -= 1
        told.extend([pod.name] if left >= 0 else [])
        return left >= 0

    with patch("agent.pod_events.pods", lambda *_: pods):
        events = PodEvents(cast("Reports", SimpleNamespace(event=event)), "pycni")
        for _ in range(50):
            left = 5
            events.tell("Overlap", "words", {})
            clock.now += 60

    assert sorted(told) == sorted(one.name for one in pods.values())


def test_too_many_at_once(tmp_path: Path) -> None:
    """An Event over the pace is not taken, and counted; one that waits already is."""
    metrics = Metrics(tmp_path / "leases")
    reports = Reports(Access().connect, "a", log=Log("error"), metrics=metrics)

    taken = [reports.event("Overlap", f"words {number}") for number in range(100)]

    assert taken[0]
    assert not taken[-1]
    assert reports.event("Overlap", "words 0")
    dropped = f"pycni_agent_reports_dropped_total {taken.count(False):.1f}"
    assert dropped in metrics.text().decode()


def test_a_condition_that_was_refused(clock: Clock, tmp_path: Path) -> None:
    """It is asked for again after a minute: the agent's rights may have come meanwhile."""
    with serving([node(0)]) as server:
        access = Access(kubeconfig=server.kubeconfig(tmp_path))
        metrics = Metrics(tmp_path / "leases")
        reports = Reports(access.connect, "node-00000", log=Log("error"), metrics=metrics)
        reports.start()
        own, found = Member("node-00000", "uid"), Condition("PycniReady", "words")
        status = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no"}
        server.failures.append(lambda handler: handler.answer(403, status))

        def rounds() -> None:
            for _ in range(5):
                reports.condition(own, found)

        rounds()
        wait_until(lambda: reports._refused_at == clock.now, "the refusal is not noted")
        clock.now += 59
        rounds()
        clock.now += 1
        rounds()
        wait_until(lambda: server.taken, "the condition is not asked for again")
        clock.now += 600
        rounds()

    assert len(server.requests) == 2
