"""Counts from traces, and Prometheus' text, as its own client library reads that."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.metrics import Metrics
from cni_common.node import spans
from cni_common.spec.steps import CALL
from commands import counters
from commands.exposition import COUNTER, GAUGE, HISTOGRAM, Family, text


def leave(directory: Path, *, code: int = 0, verb: str = "ADD", plugin: str = "bridge") -> None:
    """Leave the trace of a call with one step."""
    CALL.begin()
    CALL.note("netlink", CALL.begun)
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    spans.leave(str(directory), plugin, environ, "net", outcome=(code, ""), by="engine")()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all calls have ended long ago."""
    now = time.monotonic_ns
    monkeypatch.setattr(time, "monotonic_ns", lambda: now() + 10_000_000_000)


def numbers(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return each sample of a page, by name and labels."""
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(page)
        for one in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """Return the key of a sample in `numbers`."""
    return name, frozenset(labels.items())


def test_text() -> None:
    """Labels with quotes, whole and broken numbers are read back."""
    gauge = Family("a", 'the "help"\nof a', GAUGE)
    gauge.add(0.25, what='x"y\\z\n')
    counter = Family("b", "of b", COUNTER)
    counter.add(12)

    found = numbers(text([gauge, counter]))

    assert found == {key("a", what='x"y\\z\n'): 0.25, key("b_total"): 12}


@pytest.mark.usefixtures("later")
def test_counts(tmp_path: Path) -> None:
    """Each call counts once for all readers; failures by their code; steps and durations."""
    for code in (0, 0, 11):
        leave(tmp_path, code=code)

    first = numbers(text(counters.of_calls(str(tmp_path))))
    leave(tmp_path, verb="DEL")
    second = numbers(text(counters.of_calls(str(tmp_path))))

    add = {"verb": "ADD", "plugin": "bridge"}
    assert first[key("pycni_requests_total", **add, code="0")] == 2
    assert first[key("pycni_requests_total", **add, code="11")] == 1
    assert first[key("pycni_request_duration_seconds_count", **add)] == 3
    assert first[key("pycni_request_duration_seconds_bucket", **add, le="+Inf")] == 3
    assert first[key("pycni_step_duration_seconds_count", step="netlink")] == 3
    assert {name: value for name, value in second.items() if "ADD" in dict(name[1]).values()} == {
        name: value for name, value in first.items() if "ADD" in dict(name[1]).values()
    }
    assert second[key("pycni_requests_total", verb="DEL", plugin="bridge", code="0")] == 1


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("days", [1, -1])
def test_the_clock_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """Calls count once, before and after: the clock of the wall decides nothing."""
    now = time.time_ns
    leave(tmp_path)
    counters.of_calls(str(tmp_path))
    for ahead in (days * 86_400 * 10**9, 0):
        monkeypatch.setattr(spans, "time_ns", lambda ahead=ahead: now() + ahead)
        monkeypatch.setattr(time, "time_ns", lambda ahead=ahead: now() + ahead)
        leave(tmp_path)

        found = numbers(text(counters.of_calls(str(tmp_path))))

    assert found[key("pycni_requests_total", verb="ADD", plugin="bridge", code="0")] == 3


@pytest.mark.usefixtures("later")
def test_labels_are_bounded(tmp_path: Path) -> None:
    """A value that a caller can choose freely is no label."""
    leave(tmp_path, verb="PWN", plugin="evil")

    found = numbers(text(counters.of_calls(str(tmp_path))))

    assert key("pycni_requests_total", verb="other", plugin="other", code="0") in found


@pytest.mark.usefixtures("later")
def test_buckets(tmp_path: Path) -> None:
    """Buckets grow, and the last one has all."""
    for _ in range(5):
        leave(tmp_path)
    (durations,) = (one for one in counters.of_calls(str(tmp_path)) if one.type == HISTOGRAM)
    counted = [one.value for one in durations.samples if one.suffix == "_bucket"]

    assert counted == sorted(counted)
    assert counted[-1] == 5
    assert len(counted) == len(counters.BUCKETS) + 1


def test_a_call_that_has_just_ended(tmp_path: Path) -> None:
    """It waits for the next look: another with an earlier end may not have left its line yet."""
    leave(tmp_path)

    requests = next(iter(counters.of_calls(str(tmp_path))))

    assert requests.samples == []


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"end": 1}', "{"])
def test_damaged_counts(tmp_path: Path, damage: str) -> None:
    """Counters begin anew."""
    (tmp_path / counters.FILE).write_text(damage)
    leave(tmp_path)

    found = numbers(text(counters.of_calls(str(tmp_path))))

    assert found[key("pycni_requests_total", verb="ADD", plugin="bridge", code="0")] == 1


@pytest.mark.usefixtures("later")
def test_the_agent_shows_the_same(tmp_path: Path) -> None:
    """Its page has the same samples of calls as that of `pycni metrics`."""
    for code in (0, 7):
        leave(tmp_path, code=code)
    ours = numbers(text(counters.of_calls(str(tmp_path))))

    page = Metrics(tmp_path / "leases", str(tmp_path)).text().decode()

    theirs = numbers(page)
    assert {name: theirs.get(name) for name in ours} == ours
    assert len(ours) > 10


def test_the_agent_without_traces(tmp_path: Path) -> None:
    """Its page is there without them."""
    assert b"pycni_build_info" in Metrics(tmp_path, str(tmp_path / "none" / "there")).text()


def test_repairs_of_pods(tmp_path: Path) -> None:
    """Several objects that are back count at once."""
    metrics = Metrics(tmp_path)
    metrics.repaired("pods", 3)
    metrics.repaired("pods")

    assert numbers(metrics.text().decode())[key("pycni_drift_repairs_total", object="pods")] == 4
