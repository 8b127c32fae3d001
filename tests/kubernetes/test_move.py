"""A cluster with kindnet's network and the Go plugins moves to pycni under running pods."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import pytest

from tests.kubernetes import by_hand, dns
from tests.kubernetes.agents import Agents, answers
from tests.kubernetes.api import EVENTS
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.node import BIN, CONFLISTS, Node
from tests.kubernetes.pods import Pod, Pods, pod, reaches
from tests.kubernetes.test_nodes import LEASES, await_paths
from tests.machine import REFERENCE_BIN, Json
from tests.waits import wait_until


@pytest.mark.timeout(600)
def test_there_and_back(network: Cluster, agents: Agents, pods: Pods) -> None:
    """Pods of either network reach each other all the time, and end cleanly after the change."""
    assert (REFERENCE_BIN / "ptp").exists(), "run deploy/prerequisites.sh --reference"
    if agents.way.interface == "bridge":
        pytest.skip("pods on a bridge look for all of their range there: drain such a node first")
    dns.remove(network)  # it may be on any node, with any address
    with without_agents(network, agents):
        agents.uninstall()
        old, old_other = make_other_network(network, pods)

    new, new_other = pods.start(pod("new", "node1"), pod("new-other", "node2"))

    await_paths((old, old_other), (new, old_other), (old, new), (new, new_other))
    assert len({*old.addresses, *new.addresses}) == 4
    pods.delete("old", "old-other")
    assert reaches(new.netns, new_other.netns, new_other.addresses[0])
    with without_agents(network, agents):
        move_back(network, agents, pods, new_other)


@contextmanager
def without_agents(network: Cluster, agents: Agents) -> Iterator[None]:
    """Stop the agents; after the block they are back, and the other network is gone."""
    agents.stop()
    try:
        yield
    finally:
        for node in network.nodes.values():
            by_hand.disconnect(node)
        agents.start()
    agents.wait_ready()
    network.wait_ready()


def make_other_network(network: Cluster, pods: Pods) -> list[Pod]:
    """Give all nodes kindnet's network, and start a pod on two of them."""
    nodes = list(network.nodes.values())
    for node in nodes:
        by_hand.install(node, REFERENCE_BIN)
    by_hand.connect(network.api, nodes)
    by_hand.configure(network.api, nodes, "0.3.1")
    network.wait_ready()
    old, old_other = pods.start(pod("old", "node1"), pod("old-other", "node2"))
    await_paths((old, old_other))
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


@pytest.mark.rotating(2)
@pytest.mark.timeout(600)
def test_node_after_node(network: Cluster, agents: Agents, pods: Pods) -> None:
    """In the order of docs/kubernetes.md: agents come beside the other network, then it goes."""
    assert (REFERENCE_BIN / "ptp").exists(), "run deploy/prerequisites.sh --reference"
    dns.remove(network)
    with without_agents(network, agents):
        agents.uninstall()
        old, old_other = make_other_network(network, pods)
        agents.start()
        agents.wait_ready()
        await_event(network, f"the runtime uses '{CONFLISTS}/{by_hand.LIST}'")
        if agents.way.mode == "direct":  # in which the other network's routes serve as well
            assert not any(map(fails, network.nodes.values()))
        else:
            await_event(network, "there is one that is not the agent's")
        (beside,) = pods.start(pod("beside", "node1"))
        assert network.first.path(f"{by_hand.LEASES}/{beside.address(4)}").exists()
        await_paths((old, old_other), (beside, old_other))

        new = moved(network, pods, network.first, [old, beside])
        await_paths((new, old_other))
        new_other = moved(network, pods, network.second, [old_other])
        await_paths((new, new_other))
        moved(network, pods, network.third, [])

    await_paths((new, new_other))
    for node in network.nodes.values():
        wait_until(partial(has_no_problem, node), "what the other network left is not replaced")


def await_event(network: Cluster, words: str) -> None:
    """Wait for an Event with these words on each Node."""
    names = set(network.nodes)

    def told(found: Mapping[str, Json]) -> bool:
        events = [one for one in found.values() if words in one.get("message", "")]
        return {one["involvedObject"]["name"] for one in events} >= names

    network.api.wait(EVENTS, told, f"Events: {words}")


def fails(node: Node) -> bool:
    """Tell whether the agent of a node sees anything wrong between nodes."""
    metrics = answers(node, "/metrics")[1]
    found = re.search(r'^pycni_agent_problems{part="network"} (\S+)$', metrics, re.MULTILINE)
    assert found
    return float(found[1]) > 0


def moved(network: Cluster, pods: Pods, node: Node, old: list[Pod]) -> Pod:
    """Drain a node, remove the other network's list, and return a new pod there."""
    pods.delete(*(one.name for one in old))
    node.path(f"{CONFLISTS}/{by_hand.LIST}").unlink()
    (new,) = pods.start(pod(f"new-{node.name}", node.name))
    assert node.path(f"{LEASES}/{new.address(4)}").exists()
    return new


def has_no_problem(node: Node) -> bool:
    """Tell whether the agent of a node sees nothing wrong."""
    problems = re.findall(r"^pycni_agent_problems{.*} (\S+)$", answers(node, "/metrics")[1], re.M)
    return bool(problems) and not any(map(float, problems))
