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
    assert len(lines) == (1 if place.name == "uninstall.yaml" else 7)
    assert [line for line in lines if not line.endswith("(server dry run)")] == []


def test_the_file_is_the_base(cluster: Cluster) -> None:
    """The one file and the kustomization have the same objects."""
    assert objects(cluster, "-f", FOLDER / "pycni.yaml") == objects(cluster, "-k", BASE)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_overlay(cluster: Cluster, overlay: Path) -> None:
    """An overlay changes one setting, and the mark that makes new agents of it."""
    base, found = objects(cluster, "-k", BASE), objects(cluster, "-k", overlay)
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
