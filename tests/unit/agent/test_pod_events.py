"""Events on pods: which pods, once, and again after it was over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.access import Access
from agent.logs import Log
from agent.metrics import Metrics
from agent.pod_events import BROKEN, Pod, PodEvents, pods
from agent.reports import Reports
from cni_common.node.record import Records
from cni_common.spec.request import Attachment
from tests.api_server import node, serving
from tests.machine import Json
from tests.waits import wait_until

NETWORK = "pycni"


@dataclass
class Part:
    """Facts of a part, which do not count here."""

    PART = "part"


class Told:
    """The Events that were told, as (pod, reason, text)."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str]] = []

    def event(self, reason: str, message: str, *, pod: Pod) -> bool:
        """Take one."""
        self.found.append((f"{pod.namespace}/{pod.name}/{pod.uid}", reason, message))
        return True

    def take(self) -> list[tuple[str, str, str]]:
        """Return what was told since the last call."""
        found, self.found = self.found, []
        return found


def record(
    folder: Path, container: str, args: str, network: str = NETWORK, plugin: str = "bridge"
) -> None:
    """Write the record of an attachment."""
    records = Records(str(folder))
    made = records.hold(plugin, network, Attachment(container, "eth0"))
    assert made
    made.put(
        Part(),
        plugin=plugin,
        network=network,
        containerid=container,
        ifname="eth0",
        cni_args=args,
    )
    made.close()
    records.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state directory with two pods, a container without a pod and one of another network."""
    made = tmp_path / "state"
    made.mkdir(mode=0o700)
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={0};K8S_POD_UID=uid-{0}"
    record(made, "c1", args.format("web"))
    record(made, "c2", args.format("db"), plugin="ptp")
    for container in ("c1", "c2"):  # by name before the one, behind the other
        record(made, container, "", plugin="host-local")
    record(made, "c3", "")
    record(made, "c4", args.format("other"), "elsewhere")
    return made


def test_pods(folder: Path) -> None:
    """Those that a kubelet has made, on this network."""
    assert pods(NETWORK, str(folder)) == {
        "c1": Pod("shop", "web", "uid-web"),
        "c2": Pod("shop", "db", "uid-db"),
    }


def test_told_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pod is told of what all have lost, and one of its own damage; again after an end.

    While it lasts it is told every half hour, as the API server forgets an Event after one hour.
    """
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("agent.reports.time", SimpleNamespace(monotonic=lambda: clock.now))
    told = Told()
    events = PodEvents(told, NETWORK, state_dir=str(folder))  # type: ignore[arg-type]
    broken = {"c2": "its veth is gone", "unknown": "x"}

    events.tell("Overlap", "not reached", broken)
    first = told.take()
    events.tell("Overlap", "not reached", broken)
    second = told.take()
    events.tell("Overlap", "", {})
    events.tell("Overlap", "not reached", {})
    third = told.take()
    clock.now += 1799
    events.tell("Overlap", "not reached", {})
    early = told.take()
    clock.now += 1
    events.tell("Overlap", "not reached", {})

    assert sorted(first) == [
        ("shop/db/uid-db", BROKEN, "its veth is gone"),
        ("shop/db/uid-db", "Overlap", "not reached"),
        ("shop/web/uid-web", "Overlap", "not reached"),
    ]
    assert (second, early) == ([], [])
    assert len(third) == 2
    assert told.take() == third


def test_an_event_is_in_the_namespace_of_its_pod(tmp_path: Path) -> None:
    """It names the pod; one of the Node is in "default". A hundred pods fill no queue."""
    with serving([node(0)]) as server:
        access = Access(kubeconfig=server.kubeconfig(tmp_path))
        metrics = Metrics(tmp_path / "leases")
        reports = Reports(access.connect, "node-00000", log=Log("error"), metrics=metrics)
        reports.start()
        for number in range(100):
            reports.event("Overlap", "words", pod=Pod("shop", f"web-{number}", f"uid-{number}"))
        reports.event("Overlap", "of the Node")

        wait_until(lambda: len(server.taken) >= 26, "not all Events come")

    (path, event), *_ = server.taken
    last: Json = server.taken[-1][1]
    assert path.startswith("/api/v1/namespaces/shop/events")
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "shop",
        "name": "web-0",
        "uid": "uid-0",
    }
    assert event["metadata"]["name"].startswith("web-0.")
    assert (last["involvedObject"]["kind"], last["metadata"]["namespace"]) == ("Node", "default")
    assert len(server.taken) == 26
