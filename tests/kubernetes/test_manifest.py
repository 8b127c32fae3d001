"""deploy/kubernetes by kubectl and the API server: each object is accepted, and does its work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.pods import pod
from tests.machine import ROOT, Json
from tests.waits import wait_until

FOLDER = ROOT / "deploy" / "kubernetes"
BASE = FOLDER / "base"
OVERLAYS = sorted(path.parent for path in FOLDER.glob("overlays/*/kustomization.yaml"))
PODS = "/api/v1/namespaces/kube-system/pods"
PROBE = "policy-probe"
CORDON = '{"spec": {"unschedulable": true}}'  # `kubectl cordon` succeeds also where it is refused


def objects(cluster: Cluster, option: str, place: Path) -> dict[str, Json]:
    """Return the objects of a file (-f) or a kustomization (-k), by kind and name."""
    words = ("create", "--dry-run=client", "--output", "json", option, str(place))
    text = cluster.plane.kubectl(*words)
    decoder, found, position = json.JSONDecoder(), {}, 0
    while position < len(text):  # one object after the other
        item, position = decoder.raw_decode(text, position)
        found[f"{item['kind']}/{item['metadata']['name']}"] = item
        while position < len(text) and text[position].isspace():
            position += 1
    return found


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ("-f", FOLDER / "pycni.yaml"),
        ("-f", FOLDER / "uninstall.yaml"),
        *(("-k", path) for path in (BASE, *OVERLAYS)),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_accepted(cluster: Cluster, option: str, place: Path) -> None:
    """The server accepts all objects, without a field that it does not know, or a warning."""
    words = ("apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors")
    said = cluster.plane.kubectl(*words, option, str(place))

    lines = said.splitlines()
    assert len(lines) == {"uninstall.yaml": 1, "condition": 11}.get(place.name, 7)
    assert [line for line in lines if not line.endswith("(server dry run)")] == []


def test_the_file_is_the_base(cluster: Cluster) -> None:
    """The one file and the kustomization have the same objects."""
    assert objects(cluster, "-f", FOLDER / "pycni.yaml") == objects(cluster, "-k", BASE)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_overlay(cluster: Cluster, overlay: Path) -> None:
    """An overlay changes one setting, and the mark that makes new agents of it; or adds objects."""
    base, found = objects(cluster, "-k", BASE), objects(cluster, "-k", overlay)
    for path in overlay.glob("*.yaml"):
        for name in objects(cluster, "-f", path) if path.name != "kustomization.yaml" else ():
            del found[name]
    settings = found["ConfigMap/pycni"]["data"].items() - base["ConfigMap/pycni"]["data"].items()
    mark = found["DaemonSet/pycni"]["spec"]["template"]["metadata"].pop("annotations")
    found["ConfigMap/pycni"]["data"] = base["ConfigMap/pycni"]["data"]

    assert len(settings) == 1
    assert mark == {"pycni/overlay": overlay.name}
    assert found == base


# --- the policy ---


@pytest.fixture(scope="module")
def agent(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A kubeconfig with the token of an agent on the first node."""
    for name in ("account", "admission"):
        cluster.plane.kubectl("apply", "-f", str(BASE / f"{name}.yaml"))
    body = pod(PROBE, cluster.first.name, spec={"hostNetwork": True, "serviceAccountName": "pycni"})
    cluster.api.create(PODS, body)
    system = ("--namespace", "kube-system")
    bound = ("--bound-object-kind", "Pod", "--bound-object-name", PROBE)
    token = cluster.plane.kubectl(*system, "create", "token", "pycni", *bound).strip()
    path = tmp_path_factory.mktemp("agent") / "config"
    path.write_text(json.dumps(_kubeconfig(cluster, token)))
    yield path
    cluster.api.delete(f"{PODS}/{PROBE}")
    cluster.plane.kubectl("annotate", "nodes", "--all", "pycni/test-", "other/test-")


def _kubeconfig(cluster: Cluster, token: str) -> dict[str, Any]:
    known = cluster.plane.kubeconfig("super-admin")
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{**known["clusters"][0], "name": "cluster"}],
        "users": [{"name": "agent", "user": {"token": token}}],
        "contexts": [{"name": "agent", "context": {"cluster": "cluster", "user": "agent"}}],
        "current-context": "agent",
    }


def refusal(cluster: Cluster, agent: Path, *words: str) -> str:
    """Run kubectl as the agent; return what it says when it is refused, "" when it is not."""
    try:
        cluster.plane.kubectl(*words, kubeconfig=str(agent))
    except AssertionError as error:
        return str(error)
    return ""


def test_own_node(cluster: Cluster, agent: Path) -> None:
    """The agent sets and removes its annotations of its own Node."""
    for change in ("pycni/test=a", "pycni/test=b", "pycni/test-"):
        words = ("annotate", "--overwrite", "node", cluster.first.name, change)
        assert refusal(cluster, agent, *words) == ""


@pytest.mark.parametrize(
    ("node", "words", "why"),
    [
        ("second", ("annotate", "node", "NODE", "pycni/test=x"), "its own Node alone"),
        ("first", ("annotate", "node", "NODE", "other/test=x"), 'begin with "pycni/"'),
        ("first", ("label", "node", "NODE", "pycni/test=x"), "no other metadata"),
        ("first", ("patch", "node", "NODE", "--patch", CORDON), "not change the spec"),
        ("first", ("taint", "node", "NODE", "pycni/test=x:NoSchedule"), "not change the spec"),
        ("first", ("delete", "node", "NODE"), "forbidden"),
    ],
    ids=["another-node", "another-annotation", "label", "cordon", "taint", "delete"],
)
def test_refused(
    cluster: Cluster, agent: Path, node: str, words: tuple[str, ...], why: str
) -> None:
    """Everything else is refused, and the message says why."""
    name = getattr(cluster, node).name
    line = tuple(word.replace("NODE", name) for word in words)

    # The policy counts moments after it was accepted.
    wait_until(lambda: why in refusal(cluster, agent, *line), f"{line} is not refused: {why}")


READS = "tests:reads-status"
CONDITION = FOLDER / "overlays" / "condition" / "status.yaml"


def _status(**status: object) -> tuple[str, ...]:
    body = json.dumps({"status": status})
    return ("patch", "node", "NODE", "--subresource", "status", "--patch", body)


def _condition(kind: str) -> tuple[str, ...]:
    found = {"type": kind, "status": "False", "reason": "Tried", "message": "by a test"}
    return _status(conditions=[found])


@pytest.fixture
def conditioned(cluster: Cluster, agent: Path) -> Iterator[Path]:
    """The agent with the rights of overlays/condition; kubectl reads before it patches."""
    cluster.plane.kubectl("apply", "-f", str(CONDITION))
    role = ("--verb", "get", "--resource", "nodes/status")
    cluster.plane.kubectl("create", "clusterrole", READS, *role)
    binding = ("--clusterrole", READS, "--serviceaccount", "kube-system:pycni")
    cluster.plane.kubectl("create", "clusterrolebinding", READS, *binding)
    yield agent
    cluster.plane.kubectl("delete", "clusterrolebinding,clusterrole", READS)
    cluster.plane.kubectl("delete", "-f", str(CONDITION))


def test_own_condition(cluster: Cluster, conditioned: Path) -> None:
    """With that overlay an agent sets NetworkUnavailable of its own Node, and nothing else."""
    own, other = cluster.first.name, cluster.second.name

    def told(words: tuple[str, ...], node: str = own) -> str:
        line = tuple(word.replace("NODE", node) for word in words)
        return refusal(cluster, conditioned, *line)

    allowed = _condition("NetworkUnavailable")
    wait_until(lambda: "own Node alone" in told(allowed, other), "another Node is changed")
    wait_until(lambda: told(allowed) == "", "its own condition cannot be set")
    assert "no other" in told(_condition("DiskPressure"))
    address = [{"type": "InternalIP", "address": "192.0.2.66"}]
    assert "nothing else of the status" in told(_status(addresses=address))
    found = cluster.api.get(f"/api/v1/nodes/{own}")["status"]["conditions"]
    assert {"NetworkUnavailable", "Ready"} <= {one["type"] for one in found}
    clear = json.dumps([one for one in found if one["type"] != "NetworkUnavailable"])
    body = f'{{"status": {{"conditions": {clear}}}}}'
    words = ("patch", "node", own, "--subresource", "status", "--type", "merge", "--patch", body)
    cluster.plane.kubectl(*words)


def test_without_the_overlay(cluster: Cluster, agent: Path) -> None:
    """The base has no right on any status."""
    line = tuple(word.replace("NODE", cluster.first.name) for word in _condition("Ready"))

    assert "forbidden" in refusal(cluster, agent, *line)


def test_nothing_else(cluster: Cluster, agent: Path) -> None:
    """The account reads neither pods, Services, Secrets nor Events, and writes nothing else."""
    for words in (
        ("get", "pods", "--all-namespaces"),
        ("get", "secrets", "--namespace", "kube-system"),
        ("get", "events", "--namespace", "default"),
        ("create", "configmap", "test", "--namespace", "kube-system"),
    ):
        assert "forbidden" in refusal(cluster, agent, *words), words


def test_without_a_node(cluster: Cluster, tmp_path: Path, agent: Path) -> None:
    """A token of the account that belongs to no pod changes no Node at all."""
    words = ("--namespace", "kube-system", "create", "token", "pycni")
    config = tmp_path / "config"
    config.write_text(json.dumps(_kubeconfig(cluster, cluster.plane.kubectl(*words).strip())))

    line = ("annotate", "--overwrite", "node", cluster.first.name, "pycni/test=x")
    assert "its own Node alone" in refusal(cluster, config, *line)
