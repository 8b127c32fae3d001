"""The watch of Nodes before an API server that fails in each way, and before odd Nodes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import nodes
from agent.access import Access
from agent.cluster import Member
from agent.logs import Log
from agent.metrics import Metrics
from agent.network import wireguard
from agent.reports import Condition, Reports
from agent.wake import Wake
from agent.watch import NodeWatch
from tests.api_server import NODES, ApiServer, Failure, Handler, node, serving
from tests.machine import Json
from tests.waits import wait_until

OWN = "node-00000"
FEW = [node(number, images=1) for number in range(120)]  # three pages
_GONE = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}


def failing(status: int, kind: str = "application/json", body: Json | bytes = b"") -> Failure:
    """Return a failure: an answer with this status."""
    told = {"kind": "Status", "apiVersion": "v1", "code": status, "message": "no"}
    return lambda handler: handler.answer(status, body or told, kind)


def _cut(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"items": [')
    handler.close_connection = True


class Silence:
    """A server that takes requests and says nothing."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def __call__(self, handler: Handler) -> None:
        """Be silent until the test is over."""
        self.over.wait(120)
        handler.close_connection = True


class Watched:
    """A server and the agent's watch of it."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server, self.wake = server, Wake(settle_seconds=0)
        self.metrics = Metrics(folder / "leases")
        self.access = Access(kubeconfig=server.kubeconfig(folder))
        self.log = Log("error")
        self.watch = NodeWatch(
            self.access.connect, OWN, self.wake, log=self.log, metrics=self.metrics
        )
        self.failures: list[str] = []

    def start(self) -> None:
        """Begin to watch."""
        self.watch.start()

    def number(self) -> int:
        """Return how many other Nodes are known."""
        found = self.watch.snapshot
        return len(found.cluster.others) if found else -1

    def await_all(self) -> None:
        """Wait until all Nodes are known and the server counts as one that answers."""
        wait_until(lambda: self.number() == len(FEW) - 1, "the Nodes are not listed")
        wait_until(lambda: not self.watch.failure, "the failure stays")

    def lists(self) -> int:
        """Return how often a list was begun."""
        asked = self.server.requests
        return sum("watch=true" not in one and "continue=" not in one for one in asked)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """A server with some Nodes, and a watch that was not started yet; pauses are short."""
    monkeypatch.setattr("agent.watch._BACK_OFF_SECONDS", (0.01, 0.02))
    with serving(FEW) as server:
        made = Watched(server, tmp_path)
        yield made
        made.wake.stop()


@pytest.mark.parametrize(
    "failure",
    [
        failing(429),
        failing(500),
        failing(503, "text/plain", b"overloaded"),
        failing(502, "", b"a proxy without a type"),
        failing(500, "application/json", b"no JSON"),
        failing(200, "text/html", b"<html>a proxy's own page</html>"),
        failing(200, "application/json", {"items": [{"metadata": {}}], "metadata": {}}),
        failing(401),
        failing(403),
        _cut,
    ],
    ids=[
        *("429", "500", "503 as text", "502 without a type", "500 that is no JSON", "a page"),
        *("no name", "401", "403", "cut short"),
    ],
)
def test_a_list_that_fails(
    watched: Watched, failure: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again; the error is known meanwhile, and forgotten after."""
    watched.server.failures += [failure] * 3
    told: list[str] = []
    note = watched.watch._note

    def noted(error: Exception) -> None:
        note(error)
        told.append(watched.watch.failure)

    monkeypatch.setattr(watched.watch, "_note", noted)
    watched.start()

    watched.await_all()

    assert len(told) == 3
    assert all(told)


def test_a_list_that_expires(watched: Watched) -> None:
    """410 in the middle of its pages begins it anew; half a list is never taken for the whole."""
    usual: list[Failure] = [Handler._nodes, failing(410, body=_GONE)]
    watched.server.failures += usual
    watched.start()

    watched.await_all()

    assert watched.lists() == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda server: server.tell("ERROR", _GONE),
        lambda server: server.tell_raw(b"no JSON\n"),
        lambda server: server.tell("ADDED", {"metadata": {"name": 7}}),
    ],
    ids=["410", "no JSON", "a Node that is none"],
)
def test_a_watch_that_fails(watched: Watched, spoil: Callable[[ApiServer], None]) -> None:
    """An answer that cannot be understood, or is too old, has everything listed again."""
    watched.start()
    watched.await_all()
    spoil(watched.server)

    wait_until(
        lambda: watched.lists() == 2 and "watch=true" in watched.server.requests[-1],
        "nothing is listed and watched again",
    )
    watched.server.tell("DELETED", FEW[5])

    wait_until(lambda: watched.number() == len(FEW) - 2, "the watch does not go on")


def test_a_watch_that_ends_at_once(watched: Watched) -> None:
    """It goes on where it was, and the rate of requests has a bound."""
    watched.start()
    watched.await_all()
    watched.server.failures += [
        lambda handler: handler.answer(200, b""),
        failing(503),
        failing(429),
    ]
    watched.server.end_watches()
    watched.server.tell("DELETED", FEW[5])

    wait_until(lambda: watched.number() == len(FEW) - 2, "the watch does not go on")


def test_a_silent_server(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request waits for ever: neither a list nor a watch, whose server answers the kernel."""
    monkeypatch.setattr("agent.api._SECONDS", 0.2)
    monkeypatch.setattr("agent.api._SILENCE_SECONDS", 0.2)
    silence = Silence()
    watched.server.failures += [silence]
    watched.start()
    watched.await_all()  # a list

    watched.server.failures += [silence]
    wait_until(lambda: not watched.server.failures, "no other watch is begun")
    before = len(watched.server.requests)
    wait_until(lambda: len(watched.server.requests) > before, "the watch waits for ever")

    silence.over.set()


def test_without_its_own_node(watched: Watched) -> None:
    """The lack is known, each change of the others wakes, and the Node itself ends it."""
    own, *others = FEW
    watched.server.nodes = others
    assert not watched.watch.lacks_own
    watched.start()

    wait_until(lambda: watched.watch.lacks_own, "nothing is said of the Node")
    assert watched.wake.wait(60)
    watched.server.tell("DELETED", others[5])
    assert watched.wake.wait(60)
    assert (watched.watch.lacks_own, watched.watch.snapshot) == (True, None)

    watched.server.tell("ADDED", own)

    wait_until(lambda: watched.number() == len(others) - 1, "the Node does not count")
    assert not watched.watch.lacks_own
    assert watched.wake.wait(60)


def test_reports_survive_failures(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Event comes through once the server takes it; one that it refuses is left out."""
    monkeypatch.setattr("agent.reports._BACK_OFF_SECONDS", (0.01, 0.02))
    busy = [failing(429), failing(500), failing(503, "text/plain", b"x"), failing(502, "", b"x")]
    watched.server.failures += [*busy, _cut, failing(403)]
    reports = Reports(watched.access.connect, OWN, log=watched.log, metrics=watched.metrics)
    reports.start()

    reports.event("Refused", "the one that is forbidden")
    reports.event("Taken", "the other one")

    wait_until(lambda: watched.server.taken, "no Event comes")
    ((_, event),) = watched.server.taken
    assert event["reason"] == "Taken"


def test_condition(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is set once, again for another Node of the name, and later where the server is busy."""
    monkeypatch.setattr("agent.reports._BACK_OFF_SECONDS", (0.01, 0.02))
    watched.server.failures += [failing(500), failing(503, "text/plain", b"x"), _cut]
    reports = Reports(watched.access.connect, OWN, log=watched.log, metrics=watched.metrics)
    reports.start()
    taken, member = watched.server.taken, Member(OWN, "uid-1")
    overlap = Condition("PodCIDROverlap", "words", is_unavailable=True)

    for number, (own, found) in enumerate(
        [(member, overlap), (member, Condition("Ready", "")), (Member(OWN, "uid-2"), overlap)], 1
    ):
        for _ in range(3):
            reports.condition(own, found)
        wait_until(lambda n=number: len(taken) == n, "it is not set")  # type: ignore[misc]
    reports.event("Last", "so nothing is on its way")
    wait_until(lambda: taken[-1][1].get("reason") == "Last", "no Event")

    assert {path for path, _ in taken[:3]} == {f"{NODES}/{OWN}/status"}
    states = [body["status"]["conditions"][0]["status"] for _, body in taken[:3]]
    assert states == ["True", "False", "True"]
    assert len(taken) == 4


def test_a_condition_that_is_forbidden(watched: Watched) -> None:
    """Without the right it is left out, and Events come as before."""
    watched.server.failures.append(failing(403))
    reports = Reports(watched.access.connect, OWN, log=watched.log, metrics=watched.metrics)
    reports.condition(Member(OWN, "uid-1"), Condition("Ready", ""))
    reports.start()
    wait_until(lambda: not watched.server.failures, "it is not tried")

    reports.event("Taken", "words")

    wait_until(lambda: watched.server.taken, "no Event")
    assert [body["reason"] for _, body in watched.server.taken] == ["Taken"]


# --- odd Nodes ---


def _changed(number: int, **spec: object) -> Json:
    found = node(number, images=0)
    return {**found, "spec": spec}


@pytest.mark.parametrize(
    ("spec", "ranges"),
    [
        ({"podCIDRs": ["0.0.0.0/0", "::/0"]}, []),
        ({"podCIDRs": ["10.0.0.0/7", "2000::/3"]}, []),
        ({"podCIDRs": ["224.0.0.0/24", "127.0.0.0/8", "169.254.0.0/16", "0.0.0.0/8"]}, []),
        ({"podCIDRs": ["fe80::/64", "ff02::/64", "::/64", "fd00::%eth0/64"]}, []),
        ({"podCIDRs": ["", " ", "x", "10.1.1.0", "10.1.1.0/33", "10.1.1.0/24\n"]}, ["10.1.1.0/32"]),
        ({"podCIDRs": ["10.1.1.7/24"]}, ["10.1.1.0/24"]),
        ({"podCIDR": "'; rm -rf /"}, []),
        ({"podCIDRs": [f"10.9.{number}.0/24" for number in range(200)]}, 8),
    ],
)
def test_odd_ranges(spec: dict[str, object], ranges: list[str] | int) -> None:
    """A range that can be no node's is left out and told, and few are taken."""
    told: list[str] = []
    found = nodes.member_of(_decoded(_changed(3, **spec)), told.append)

    if isinstance(ranges, int):
        assert len(found.ranges) == ranges
    else:
        assert [*map(str, found.ranges)] == ranges
        assert told or found.ranges
    assert all(len(one) < 300 for one in told)


@pytest.mark.parametrize(
    "address", ["fe80::1%eth0", "fe80::1", "127.0.0.1", "0.0.0.0", "::", "224.0.0.1", "x" * 9000]
)
def test_odd_addresses(address: str) -> None:
    """An address by which no node is reached is left out; the next one counts."""
    found = node(3, images=0)
    found["status"]["addresses"] = [
        {"type": "InternalIP", "address": one} for one in (address, "192.0.2.3")
    ]
    told: list[str] = []

    member = nodes.member_of(_decoded(found), told.append)

    assert [*map(str, member.addresses)] == ["192.0.2.3"]
    (text,) = told
    assert len(text) < 300


def test_odd_annotations() -> None:
    """Of 256 KiB in place of a key no more is kept than of a key, and it is none."""
    found = node(3, images=0)
    found["metadata"]["annotations"] = {nodes.PUBLIC_KEY: "A" * (256 << 10), "x": "\0\ud7ff"}

    member = nodes.member_of(_decoded(found))

    assert len(member.public_key) == 64
    assert not wireguard.is_key(member.public_key)


def test_a_key_of_two_forms() -> None:
    """Four texts stand for the same octets; the kernel tells one of them, so it alone is a key."""
    assert wireguard.is_key("A" * 42 + "A=")
    assert not wireguard.is_key("A" * 42 + "B=")


def test_odd_nodes_are_told_once(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat every few seconds says nothing new, and a cluster of such Nodes fills no log."""
    told: list[str] = []
    monkeypatch.setattr(watched.log, "warning", lambda text, **_more: told.append(text))
    watched.start()
    watched.await_all()
    for number in (*range(300), 3):
        watched.server.tell("MODIFIED", _changed(number, podCIDR="x"))
    watched.server.tell("DELETED", FEW[5])

    wait_until(lambda: watched.number() == 300 - 2, "the watch does not go on")

    assert len(told) == len(set(told)) == 100
    assert told[3] == "node 'node-00003': its podCIDR 'x' is no range; it is not used"


def _decoded(data: Json) -> nodes.Node:
    import msgspec

    return msgspec.json.decode(json.dumps(data), type=nodes.Node)


def test_the_server_of_these_tests() -> None:
    """It pages as asked: otherwise no test here would say anything."""
    import urllib.request

    with serving(FEW) as server:
        url = f"http://127.0.0.1:{server.port}{NODES}?limit=50&continue=100"
        with urllib.request.urlopen(url) as answer:
            found = json.load(answer)
    assert [one["metadata"]["name"] for one in found["items"]] == [
        f"node-{number:05}" for number in range(100, 120)
    ]
    assert found["metadata"]["continue"] == ""
