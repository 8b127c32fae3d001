"""A node waits for its network, and is Ready moments after the agent has brought it."""

from __future__ import annotations

import time

from agent.configuration import NEW_VERSION, Choice
from tests.kubernetes import stages
from tests.kubernetes.agent_pods import AgentPods
from tests.kubernetes.agents import Agents, forget_configuration
from tests.kubernetes.api import EVENTS, NODES, PODS, condition_of
from tests.kubernetes.cluster import NAMES, Cluster
from tests.kubernetes.pods import Pods, pod
from tests.waits import longer_if_busy, wait_until

READY_SECONDS = 3.0  # from the list to the Node that is Ready
# From kubectl apply to the first Node. The aim is three; slow machines miss it.
FIRST_SECONDS = 6.0
# Of the agent on each node, from its process to the list, and its part of the time since
# `kubectl apply`. All else is Kubernetes'.
OUR_SECONDS, OUR_CPU_SECONDS, OUR_PART = 4.0, 2.5, 0.75


def test_ready_with_the_agent(network: Cluster, agents: Agents, pods: Pods) -> None:
    """Without a list nodes are NotReady and say why, and a pod waits; the agent changes both."""
    agents.stop()
    if network.combination.cni_version == NEW_VERSION:
        await_told(network)
    forget_configuration(network.nodes.values())
    told = "cni plugin not initialized"
    wait_until(
        lambda: all(told in text for text in network.readiness().values()), "nodes are not ready"
    )
    make_new(network)
    pods.create(pod("early", "node1"))
    network.api.wait(
        EVENTS,
        lambda found: any(name.startswith("early.") for name in found),
        "an event says that the pod waits",
    )
    assert network.api.get(f"{PODS}/early")["status"]["phase"] == "Pending"

    if isinstance(agents, AgentPods):
        with stages.followed(network) as follower:
            agents.start()
        stages.note(f"{network.combination.name} {agents.way.name}", follower)
        for moments in follower.nodes.values():
            assert moments.ours < longer_if_busy(OUR_SECONDS), moments.lasted
            assert moments.lasted["notice"] < longer_if_busy(READY_SECONDS), moments.lasted
            assert moments.ours < OUR_PART * moments.total, moments.lasted
            assert moments.cpu < OUR_CPU_SECONDS
        first = min(moments.total for moments in follower.nodes.values())
        assert first < longer_if_busy(FIRST_SECONDS)
    else:  # a process of each node, from the sources
        agents.start()
        agents.wait_ready()
        begun = time.monotonic()
        network.wait_ready(*NAMES)
        assert time.monotonic() - begun < longer_if_busy(READY_SECONDS)
    pods.ready(["early"])


def await_told(network: Cluster) -> None:
    """Have STATUS refuse on a node, and wait until `kubectl describe node` shows its words."""
    node = network.third
    node.command("rm", str(Choice().indicator))
    wait_until(
        lambda: "network pycni is not ready on this node" in network.readiness()[node.name],
        "the Node does not say what STATUS says",
    )


def make_new(network: Cluster) -> None:
    """Start kubelets again that know their Nodes as NotReady, as those of new nodes do.

    For two minutes such a one asks the runtime ten times a second, and tells the API at once when
    the node is Ready. Later, or after a Node that was Ready, it asks every 5 s.
    """

    def heartbeats() -> dict[str, str]:
        items = network.api.list(NODES)
        return {one["metadata"]["name"]: _heartbeat(condition_of(one, "Ready")) for one in items}

    before = heartbeats()
    for node in network.nodes.values():
        node.daemons["kubelet"].kill()
        node.daemons["kubelet"].start()
    wait_until(
        lambda: all(heartbeat > before[name] for name, heartbeat in heartbeats().items()),
        "kubelets do not come back",
    )


def _heartbeat(condition: dict[str, str]) -> str:
    return condition.get("lastHeartbeatTime", "")
