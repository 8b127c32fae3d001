"""A node waits for its network, and is Ready moments after the agent has brought it."""

from __future__ import annotations

import time

from tests.kubernetes.agents import Agents, forget_configuration
from tests.kubernetes.api import EVENTS, PODS
from tests.kubernetes.cluster import NAMES, Cluster
from tests.kubernetes.pods import Pods, pod
from tests.waits import longer_if_busy, wait_until

READY_SECONDS = 3.0


def test_ready_with_the_agent(network: Cluster, agents: Agents, pods: Pods) -> None:
    """Without a list nodes are NotReady and say why, and a pod waits; the agent changes both."""
    agents.stop()
    forget_configuration(network.nodes.values())
    for node in network.nodes.values():  # a node that has been Ready is asked every 5 s alone
        node.daemons["kubelet"].kill()
        node.daemons["kubelet"].start()
    told = "cni plugin not initialized"
    wait_until(
        lambda: all(told in text for text in network.readiness().values()), "nodes are not ready"
    )
    pods.create(pod("early", "node1"))
    network.api.wait(
        EVENTS,
        lambda found: any(name.startswith("early.") for name in found),
        "an event says that the pod waits",
    )
    assert network.api.get(f"{PODS}/early")["status"]["phase"] == "Pending"

    agents.start()

    agents.wait_ready()
    begun = time.monotonic()
    network.wait_ready(*NAMES)
    assert time.monotonic() - begun < longer_if_busy(READY_SECONDS)
    pods.ready(["early"])
