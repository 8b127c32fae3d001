"""A cluster with kindnet's network and the Go plugins moves to pycni under running pods."""

from __future__ import annotations

import pytest

from tests.kubernetes import by_hand, dns
from tests.kubernetes.agents import Agents
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.node import BIN
from tests.kubernetes.pods import Pod, Pods, pod, reaches
from tests.kubernetes.test_nodes import await_paths
from tests.machine import REFERENCE_BIN


@pytest.mark.timeout(600)
def test_there_and_back(network: Cluster, agents: Agents, pods: Pods) -> None:
    """Pods of either network reach each other all the time, and end cleanly after the change."""
    assert (REFERENCE_BIN / "ptp").exists(), "run deploy/prerequisites.sh --reference"
    if agents.way.interface == "bridge":
        pytest.skip("pods on a bridge look for all of their range there: drain such a node first")
    dns.remove(network)  # it may be on any node, with any address
    agents.stop()
    agents.uninstall()
    try:
        old, old_other = with_other_network(network, pods)
    finally:
        agents.start()
    agents.wait_ready()
    network.wait_ready()

    new, new_other = pods.start(pod("new", "node1"), pod("new-other", "node2"))

    await_paths((old, old_other), (new, old_other), (old, new), (new, new_other))
    assert len({*old.addresses, *new.addresses}) == 4
    pods.delete("old", "old-other")
    assert reaches(new.netns, new_other.netns, new_other.addresses[0])
    agents.stop()
    try:
        move_back(network, agents, pods, new_other)
    finally:
        for node in network.nodes.values():
            by_hand.disconnect(node)
        agents.start()
    agents.wait_ready()
    network.wait_ready()


def with_other_network(network: Cluster, pods: Pods) -> list[Pod]:
    """Give all nodes kindnet's network, start a pod on two of them, and remove the network."""
    nodes = list(network.nodes.values())
    for node in nodes:
        by_hand.install(node, REFERENCE_BIN)
    by_hand.connect(network.api, nodes)
    by_hand.configure(network.api, nodes, "0.3.1")
    network.wait_ready()
    old, old_other = pods.start(pod("old", "node1"), pod("old-other", "node2"))
    await_paths((old, old_other))
    for node in nodes:
        by_hand.disconnect(node)
    return [old, old_other]


def move_back(network: Cluster, agents: Agents, pods: Pods, ours: Pod) -> None:
    """Move node after node; `ours` is a pod of the second one, with an address of pycni."""
    nodes = list(network.nodes.values())
    pods.delete("new")  # as a drain of the first node does
    network.wait_torn_down()
    agents.uninstall(network.first, is_forced=False)
    by_hand.connect(network.api, nodes)
    by_hand.configure(network.api, [network.first], "0.3.1")
    (back,) = pods.start(pod("back", "node1"))
    assert network.first.path(f"{by_hand.LEASES}/{back.address(4)}").exists()
    await_paths((back, ours))

    pods.delete(ours.name)
    network.wait_torn_down()
    for node in nodes[1:]:
        agents.uninstall(node, is_forced=False)
    by_hand.configure(network.api, nodes, "0.3.1")
    (back_other,) = pods.start(pod("back-other", "node2"))

    await_paths((back, back_other))
    for node in nodes:
        restored = node.path(f"{BIN}/ptp").read_bytes()
        assert restored == (REFERENCE_BIN / "ptp").read_bytes()
    pods.delete(back.name, back_other.name)
    network.wait_torn_down()
