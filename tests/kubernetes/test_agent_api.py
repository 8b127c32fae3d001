"""The agent's conversation with a real API server: Nodes, Events, an annotation."""

from __future__ import annotations

import base64
import ipaddress
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lightkube.core.exceptions import ConfigError

from agent.access import Access
from agent.cluster import Member
from agent.logs import Log
from agent.metrics import Metrics
from agent.nodes import PUBLIC_KEY
from agent.reports import Condition, Reports
from agent.wake import Wake
from agent.watch import NodeWatch
from tests.kubernetes.api import EVENTS, MERGE, NODES
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.control_plane import ControlPlane
from tests.machine import Json
from tests.waits import wait_until


class Followed:
    """A watch of Nodes, and the Nodes that a test has made."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane, self.api = plane, plane.api
        self.log = Log("error")
        self.metrics = Metrics(folder / "leases")
        self.access = Access(kubeconfig=plane.conf("super-admin"))
        self.wakes: list[Wake] = []
        self.nodes: list[str] = []

    def node(self, address: str, *ranges: str) -> str:
        """Make a Node without a kubelet; return its name."""
        name = f"made-{uuid.uuid4().hex[:8]}"
        spec = {"podCIDR": ranges[0], "podCIDRs": list(ranges)} if ranges else {}
        self.api.create(NODES, {"metadata": {"name": name}, "spec": spec})
        self.nodes.append(name)
        self.move(name, address)
        return name

    def move(self, name: str, address: str) -> None:
        """Give a Node another address."""
        status = {"addresses": [{"type": "InternalIP", "address": address}]}
        self.api.request("PATCH", f"{NODES}/{name}/status", {"status": status}, MERGE)

    def delete(self, name: str) -> None:
        """Delete a Node."""
        self.api.delete(f"{NODES}/{name}")
        self.nodes.remove(name)

    def watch(self, own: str, access: Access | None = None) -> NodeWatch:
        """Start a watch of a node's agent."""
        wake = Wake(settle_seconds=0)
        self.wakes.append(wake)
        connect = (access or self.access).connect
        watch = NodeWatch(connect, own, wake, log=self.log, metrics=self.metrics)
        watch.start()
        return watch

    def close(self) -> None:
        """End watches and Nodes."""
        for wake in self.wakes:
            wake.stop()
        for name in list(self.nodes):
            self.delete(name)


@pytest.fixture
def plane(cluster: Cluster) -> ControlPlane:
    """The control plane of the cluster."""
    return cluster.plane


@pytest.fixture
def followed(plane: ControlPlane, tmp_path: Path) -> Iterator[Followed]:
    """The API server, and what a test follows."""
    made = Followed(plane, tmp_path)
    yield made
    made.close()


def _other(watch: NodeWatch, name: str) -> Member | None:
    members = watch.snapshot.cluster.others if watch.snapshot else ()
    return next((one for one in members if one.name == name), None)


def _address(member: Member | None) -> str:
    return str(member.addresses[0]) if member and member.addresses else ""


def test_nodes_are_followed(followed: Followed) -> None:
    """A Node that comes, moves, goes is seen by the watch; the own one is apart from the others."""
    own = followed.node("192.0.2.1", "10.244.201.0/24", "fd00:10:244:d1::/64")
    watch = followed.watch(own)
    wait_until(lambda: watch.snapshot, "no list")
    assert watch.snapshot
    assert watch.snapshot.cluster.own.ranges == (
        ipaddress.ip_network("10.244.201.0/24"),
        ipaddress.ip_network("fd00:10:244:d1::/64"),
    )

    other = followed.node("192.0.2.2", "10.244.202.0/24")
    wait_until(lambda: _address(_other(watch, other)) == "192.0.2.2", "the Node does not come")
    followed.move(other, "192.0.2.3")
    wait_until(lambda: _address(_other(watch, other)) == "192.0.2.3", "the Node does not move")
    followed.delete(other)
    wait_until(lambda: _other(watch, other) is None, "the Node does not go")

    assert own not in {one.name for one in watch.snapshot.cluster.others}
    assert watch.failure == ""


def test_the_own_node_is_deleted(followed: Followed) -> None:
    """Until it is registered again its last known ranges and addresses count."""
    own = followed.node("192.0.2.1", "10.244.201.0/24")
    watch = followed.watch(own)
    wait_until(lambda: watch.snapshot, "no list")
    followed.delete(own)
    other = followed.node("192.0.2.2", "10.244.202.0/24")

    wait_until(lambda: _other(watch, other), "the watch has ended with the Node")

    assert watch.snapshot
    assert watch.snapshot.cluster.own.ranges == (ipaddress.ip_network("10.244.201.0/24"),)


def test_the_server_is_away(followed: Followed) -> None:
    """The last known cluster stays, and changes are seen when the server is back."""
    own = followed.node("192.0.2.1", "10.244.201.0/24")
    other = followed.node("192.0.2.2", "10.244.202.0/24")
    watch = followed.watch(own)
    wait_until(lambda: _other(watch, other), "no list")

    followed.plane.stop_api()
    wait_until(lambda: watch.failure, "the failure is not noticed")
    assert _other(watch, other)
    followed.plane.start_api()
    followed.move(other, "192.0.2.9")

    wait_until(lambda: _address(_other(watch, other)) == "192.0.2.9", "the watch does not return")
    assert watch.failure == ""


def test_a_version_that_is_too_old(followed: Followed) -> None:
    """410 Gone has everything listed again."""
    own = followed.node("192.0.2.1", "10.244.201.0/24")
    watch = NodeWatch(
        followed.access.connect,
        own,
        Wake(),
        log=followed.log,
        metrics=followed.metrics,
    )
    watch._version = "1"
    watch.start()

    wait_until(lambda: watch.snapshot, "nothing is listed")

    assert 'pycni_api_watches_ended_total{reason="gone"} 1.0' in followed.metrics.text().decode()


def test_pages(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list in several pages is complete."""
    monkeypatch.setattr("agent.watch._PAGE", 2)
    names = [followed.node(f"192.0.2.{10 + number}") for number in range(5)]

    watch = followed.watch(names[0])
    wait_until(lambda: watch.snapshot, "no list")

    assert watch.snapshot
    assert {one.name for one in watch.snapshot.cluster.others} >= set(names[1:])


def _service_account(followed: Followed, folder: Path) -> Callable[[], str]:
    """Mount a service account that may follow Nodes, without its token; return what gets one."""
    name = f"agent-{uuid.uuid4().hex[:8]}"
    accounts = "/api/v1/namespaces/kube-system/serviceaccounts"
    followed.api.create(accounts, {"metadata": {"name": name}})
    group = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
    followed.api.create(
        f"/apis/{group}/v1/clusterroles", {"metadata": {"name": name}, "rules": rules}
    )
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}
    followed.api.create(
        f"/apis/{group}/v1/clusterrolebindings",
        {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
            "subjects": [subject],
        },
    )
    config = followed.plane.kubeconfig("super-admin")
    authority = config["clusters"][0]["cluster"]["certificate-authority-data"]
    (folder / "ca.crt").write_bytes(base64.b64decode(authority))

    def token() -> str:
        found: Json = followed.api.create(f"{accounts}/{name}/token", {"spec": {}})
        return str(found["status"]["token"])

    return token


def test_the_token_is_read_again(followed: Followed, tmp_path: Path) -> None:
    """In a pod: by the token of the service account, as it is on the disk at each request."""
    own = followed.node("192.0.2.1", "10.244.201.0/24")
    token = _service_account(followed, tmp_path)
    (tmp_path / "token").write_text("expired")
    server = f"{followed.api.host}:{followed.api.port}"
    watch = followed.watch(own, Access(server=server, service_account=tmp_path))
    wait_until(lambda: "Unauthorized" in watch.failure, "an expired token is accepted")

    (tmp_path / "token").write_text(token())

    wait_until(lambda: watch.snapshot, "the new token is not used")


def test_access_that_is_none(tmp_path: Path) -> None:
    """Outside of a pod, or without the mount, the message says what to do."""
    with pytest.raises(ConfigError, match="--kubeconfig"):
        Access().connect()
    with pytest.raises(ConfigError, match="mount the service account"):
        Access(server="192.0.2.1:6443", service_account=tmp_path).connect()


def test_reports(followed: Followed) -> None:
    """An Event is about the Node, and the public key is an annotation of it."""
    own = followed.node("192.0.2.1", "10.244.201.0/24")
    reports = Reports(followed.access.connect, own, log=followed.log, metrics=followed.metrics)
    reports.start()
    member = Member(own, followed.api.request("GET", f"{NODES}/{own}")["metadata"]["uid"])

    reports.announce(member, "key=")
    reports.event("PodCIDROverlap", "new pods are refused")

    def events() -> list[Json]:
        found: list[Json] = followed.api.request("GET", EVENTS)["items"]
        return [one for one in found if one["involvedObject"].get("name") == own]

    def annotations() -> Json:
        found: Json = followed.api.request("GET", f"{NODES}/{own}")["metadata"]
        return dict(found.get("annotations", {}))

    wait_until(lambda: annotations().get(PUBLIC_KEY) == "key=", "the key is not announced")
    wait_until(events, "there is no Event")
    (event,) = (one for one in events() if one["source"]["component"] == "pycni-agent")
    assert (event["reason"], event["type"]) == ("PodCIDROverlap", "Warning")
    assert event["involvedObject"]["uid"] == member.uid
    reports.announce(replace(member, public_key="key="), "key=")
    assert reports._key == ""


def test_condition(followed: Followed) -> None:
    """NetworkUnavailable has the controller manager keep new pods away, until it is over."""
    own = followed.node("192.0.2.1", "10.244.201.0/24")
    reports = Reports(followed.access.connect, own, log=followed.log, metrics=followed.metrics)
    reports.start()
    member = Member(own, followed.api.request("GET", f"{NODES}/{own}")["metadata"]["uid"])

    def tainted() -> bool:
        spec = followed.api.request("GET", f"{NODES}/{own}")["spec"]
        return any(one["key"].endswith("/network-unavailable") for one in spec.get("taints", ()))

    reports.condition(member, Condition("PodCIDROverlap", "words", is_unavailable=True))
    wait_until(tainted, "the Node takes new pods")
    reports.condition(member, Condition("PycniReady", "words"))
    wait_until(lambda: not tainted(), "the Node takes no new pods")
