"""A cluster with kindnet's network and the Go plugins moves to pycni under running pods."""

from __future__ import annotations

import pytest

from tests.kubernetes import by_hand
from tests.kubernetes.agents import Agents
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.pods import Pods, pod, reaches
from tests.kubernetes.test_nodes import await_paths
from tests.machine import REFERENCE_BIN


@pytest.mark.timeout(600)
def test_there_and_back(network: Cluster, agents: Agents, pods: Pods) -> None:
    """Pods of either network reach each other all the time, and end cleanly after the change."""
    assert (REFERENCE_BIN / "ptp").exists(), "run deploy/prerequisites.sh --reference"
    if agents.way.interface == "bridge":
        pytest.skip("pods on a bridge look for all of their range there: drain such a node first")
    nodes = list(network.nodes.values())
    agents.stop()
    agents.uninstall()
    try:
        for node in nodes:
            by_hand.install(node, REFERENCE_BIN)
        by_hand.connect(network.api, nodes)
        by_hand.configure(network.api, nodes, "0.3.1")
        network.wait_ready()
        old, old_other = pods.start(pod("old", "node1"), pod("old-other", "node2"))
        await_paths((old, old_other))
        for node in nodes:
            by_hand.disconnect(node)
    finally:
        agents.start()
    agents.wait_ready()
    network.wait_ready()

    new, new_other = pods.start(pod("new", "node1"), pod("new-other", "node2"))

    await_paths((old, old_other), (new, old_other), (old, new), (new, new_other))
    assert len({*old.addresses, *new.addresses}) == 4
    pods.delete("old", "old-other")
    assert reaches(new.netns, new_other.netns, new_other.addresses[0])
