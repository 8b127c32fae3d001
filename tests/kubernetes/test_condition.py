"""The overlay `condition`: NetworkUnavailable of a Node is its agent's, and Kubernetes heeds it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import pytest

from agent.configuration import NEW_VERSION
from tests.kubernetes import agent_pods
from tests.kubernetes.agent_pods import NAME, AgentPods
from tests.kubernetes.agents import Agents
from tests.kubernetes.api import NODES, PODS, condition_of, is_ready
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.node import BIN, Node
from tests.kubernetes.pods import Pods, pod
from tests.kubernetes.test_manifest import CONDITION
from tests.machine import Json
from tests.waits import wait_until

pytestmark = [
    pytest.mark.rotating(2),  # by each way of connecting pods, on half of the days
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(agent_pods.missing()), reason=agent_pods.missing() or "-"),
]

KIND = "NetworkUnavailable"
TAINT = "node.kubernetes.io/network-unavailable"
ROLLOUT_SECONDS = 120
PLUGINS = 4  # of a list: the interface's, host-local, portmap, bandwidth


@pytest.fixture
def conditioned(network: Cluster, agents: Agents) -> Iterator[Cluster]:
    """The cluster with the overlay, and with the base again at the end."""
    assert isinstance(agents, AgentPods)
    kustomized = network.plane.kubectl("kustomize", str(CONDITION.parent))
    roll_out(network, agents.set_up(kustomized))
    yield network
    roll_out(network, agents.text())
    network.plane.kubectl("delete", "-f", str(CONDITION))


def roll_out(cluster: Cluster, manifest: str) -> None:
    """Apply a manifest, and wait until all agents are of it."""
    cluster.plane.kubectl("apply", "-f", "-", stdin=manifest)
    wait = ("rollout", "status", f"daemonset/{NAME}", f"--timeout={ROLLOUT_SECONDS}s")
    cluster.plane.kubectl("--namespace", "kube-system", *wait, seconds=ROLLOUT_SECONDS + 10)


def told(node: Json) -> tuple[str, str]:
    """Return status and reason of the condition, and "" for each where there is none."""
    found = condition_of(node, KIND)
    return found.get("status", ""), found.get("reason", "")


def tainted(node: Json) -> bool:
    """Tell whether the controller manager keeps new pods away for the condition."""
    return any(one["key"] == TAINT for one in node["spec"].get("taints", ()))


def await_nodes(cluster: Cluster, is_so: Callable[[Json], bool], what: str, *names: str) -> None:
    """Wait until Nodes, all of the cluster's unless they are named, are so."""

    def all_so(found: Mapping[str, Json]) -> bool:
        return all(name in found and is_so(found[name]) for name in names or cluster.nodes)

    cluster.api.wait(NODES, all_so, what)


def is_available(node: Json) -> bool:
    """Tell whether the agent says that pods can start."""
    return told(node) == ("False", "PycniReady") and not tainted(node)


def is_refusing(node: Json) -> bool:
    """Tell whether the agent says that new pods are refused, and the scheduler heeds it."""
    return told(node) == ("True", "PodCIDROverlap") and tainted(node)


def heartbeat(cluster: Cluster, name: str) -> str:
    """Return when the kubelet has told of itself last."""
    return str(condition_of(cluster.api.get(f"{NODES}/{name}"), "Ready")["lastHeartbeatTime"])


def test_condition(conditioned: Cluster, pods: Pods) -> None:
    """False when the network is set up; true while it is broken, with a taint; false again."""
    node = conditioned.third
    await_nodes(conditioned, is_available, "each Node has the condition")
    last = heartbeat(conditioned, node.name)
    ranges = conditioned.ranges()[node.name]
    broken = {"podCIDRs": ranges, "podCIDR": ranges[0]}

    conditioned.api.create(NODES, {"metadata": {"name": "overlapping"}, "spec": broken})
    try:
        await_nodes(conditioned, is_refusing, "the condition is true", node.name)
        await_statuses(conditioned, node)
        assert is_ready(conditioned.api.get(f"{NODES}/{node.name}"))  # so its pods stay
        others = [conditioned.first.name, conditioned.second.name]
        await_nodes(conditioned, is_available, "others are as before", *others)
        label = {"kubernetes.io/hostname": node.name}
        pods.create(pod("kept-away", "", spec={"nodeSelector": label}))
        conditioned.api.wait(PODS, _is_unschedulable, "the scheduler keeps the pod away")
    finally:
        conditioned.api.delete(f"{NODES}/overlapping")

    await_nodes(conditioned, is_available, "the condition is false again")
    (started,) = pods.ready(["kept-away"])
    assert started.node is node
    # The kubelet, whose status that is, leaves the condition alone.
    conditioned.api.wait(
        NODES,
        lambda found: condition_of(found[node.name], "Ready")["lastHeartbeatTime"] > last,
        "the kubelet tells of itself",
    )
    await_nodes(conditioned, is_available, "the condition stays")


def await_statuses(cluster: Cluster, node: Node) -> None:
    """Wait until the runtime has asked twice more for STATUS, if it does at all."""

    def count() -> int:
        text = node.command(f"{BIN}/pycni", "metrics")
        found = re.findall(r'^pycni_requests_total{verb="STATUS",.*} (\d+)$', text, re.M)
        return sum(map(int, found))

    before = count()
    if cluster.combination.cni_version == NEW_VERSION:
        asked = before + 2 * PLUGINS
        wait_until(lambda: count() >= asked, "the runtime asks no more", pause=0.5)


def _is_unschedulable(found: Mapping[str, Json]) -> bool:
    return condition_of(found.get("kept-away", {}), "PodScheduled").get("reason") == "Unschedulable"
