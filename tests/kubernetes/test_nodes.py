"""Nodes that come, go, come back as others, and reboot."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from tests.kubernetes.agents import LIST, Agents
from tests.kubernetes.api import EVENTS, NODES, PODS, Api
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.node import CONFLISTS, Node
from tests.kubernetes.pods import Pod, Pods, pod, reaches
from tests.machine import Json
from tests.traffic import traffic
from tests.waits import wait_until

pytestmark = pytest.mark.rotating(2)  # by each way of connecting pods, on half of the days

LEASES, READY = "/var/lib/cni/networks/pycni", "/run/pycni/agent/ready"
OTHER_NUMBER = 27  # of an address that no node has had


def await_paths(*pairs: tuple[Pod, Pod]) -> None:
    """Wait until pods reach each other, by both families and in both directions."""
    for client, server in pairs:
        for version in (4, 6):
            wait_until(
                lambda c=client, s=server, v=version: (  # type: ignore[misc]
                    reaches(c.netns, s.netns, s.address(v)) == c.address(v)
                    and reaches(s.netns, c.netns, c.address(v)) == s.address(v)
                ),
                f"{client.name} and {server.name} reach each other by IPv{version}",
            )


def back(network: Cluster, agents: Agents, node: Node) -> None:
    """Start the agent of a node that has booted, and wait until the node is Ready."""
    agents.start(node)
    agents.wait_ready(node)
    network.wait_ready(node.name, seconds=120)


@pytest.mark.timeout(600)
def test_reboot(network: Cluster, agents: Agents, pods: Pods) -> None:
    """All namespaces are gone and /run is empty: pods start anew, and are reached.

    None has an address before the agent has made the network.
    """
    node = network.third
    (other,) = pods.start(pod("other", "node1"))
    (old,) = pods.start(pod("survivor", node.name))

    booted = time.time_ns()
    node.reboot()
    back(network, agents, node)

    def restarted(found: Mapping[str, Json]) -> bool:
        status = found["survivor"]["status"]
        return bool(status["containerStatuses"][0]["restartCount"]) and bool(status.get("podIPs"))

    network.api.wait(PODS, restarted, "the pod of before starts anew")
    (survivor,) = pods.ready(["survivor"])
    assert survivor.uid == old.uid
    lease = node.path(f"{LEASES}/{survivor.address(4)}").stat().st_mtime_ns
    assert lease >= node.path(READY).stat().st_mtime_ns > booted
    (new,) = pods.start(pod("new", node.name))
    await_paths((survivor, other), (new, other), (new, survivor))


@pytest.mark.timeout(600)
def test_same_name_other_address(network: Cluster, agents: Agents, pods: Pods) -> None:
    """A node is deleted and registers again with another address: others find its pods there."""
    node = network.third
    (other,) = pods.start(pod("other", "node1"))
    old = network.api.get(f"{NODES}/{node.name}")
    number = node.number
    node.shut_down()
    network.api.delete(f"{NODES}/{node.name}")
    for address in old["spec"]["podCIDRs"]:
        wait_until(lambda a=address: not has_route(network.first, a), f"route to {address} goes")  # type: ignore[misc]

    node.boot(OTHER_NUMBER)
    try:
        back(network, agents, node)
        assert network.api.get(f"{NODES}/{node.name}")["metadata"]["uid"] != old["metadata"]["uid"]
        (new,) = pods.start(pod("new", node.name))
        await_paths((new, other))
        pods.delete("new")
    finally:
        node.shut_down()
        network.api.delete(f"{NODES}/{node.name}")
        node.boot(number)
        back(network, agents, node)


def has_route(node: Node, destination: str) -> bool:
    """Tell whether a node has a route of exactly this destination."""
    family = "-6" if ":" in destination else "-4"
    return any(one["dst"] == destination for one in node.ip(family, "route"))


@pytest.mark.timeout(600)
def test_other_ranges(network: Cluster, agents: Agents, pods: Pods) -> None:
    """A Node that registers again with other ranges: new pods are in these, and are reached."""
    node = network.third
    (other, _) = pods.start(pod("other", "node1"), pod("before", node.name))
    pods.delete("before")
    old, ended = network.ranges()[node.name], node.daemons["kube-proxy"].ended
    node.daemons["kubelet"].stop()
    network.api.delete(f"{NODES}/{node.name}")
    holder = {"metadata": {"name": "holder"}, "spec": {"podCIDRs": old, "podCIDR": old[0]}}
    network.api.create(NODES, holder)  # so the controller manager gives others
    try:
        node.daemons["kubelet"].start()
        node.await_other_proxy(ended)
        network.api.wait(
            NODES,
            lambda found: (
                found.get(node.name, {}).get("spec", {}).get("podCIDRs", old) not in ([], old)
            ),
            "the node has other ranges",
        )
        network.wait_ready(node.name)
        (new,) = pods.start(pod("new", node.name))
        assert {*network.ranges()[node.name]}.isdisjoint(old)
        await_paths((new, other))
    finally:
        network.api.delete(f"{NODES}/holder")


@pytest.mark.timeout(600)
def test_overlap(network: Cluster, agents: Agents, pods: Pods) -> None:
    """Two Nodes of one range: new pods are refused, the Events say why; those that run go on."""
    node = network.third
    running, other = pods.start(pod("running", node.name), pod("other", "node1"))
    ranges = network.ranges()[node.name]
    spec = {"podCIDRs": ranges, "podCIDR": ranges[0]}
    # Its name comes after: of two Nodes with one range, the first by name keeps the route.
    network.api.create(NODES, {"metadata": {"name": "overlapping"}, "spec": spec})
    try:
        network.api.wait(
            EVENTS,
            lambda found: any("overlapping" in item.get("message", "") for item in found.values()),
            "an event names the other node",
        )
        network.api.wait(
            EVENTS,
            lambda found: any(
                "stay reachable" in item.get("message", "") for item in found.values()
            ),
            "an event says what becomes of pods that run",
        )
        configuration = node.path(f"{CONFLISTS}/{LIST}")
        wait_until(lambda: '"closed"' in configuration.read_text(), "the list is not closed")
        pods.create(pod("refused", node.name))
        network.api.wait(
            EVENTS,
            lambda found: any(
                name.startswith("refused.") and "overlaps" in item.get("message", "")
                for name, item in found.items()
            ),
            "the event of the pod says why",
        )
        await_paths((running, other))
    finally:
        network.api.delete(f"{NODES}/overlapping")
    pods.ready(["refused"])


@pytest.mark.timeout(600)
def test_overlap_with_a_node_that_comes_first(network: Cluster, pods: Pods) -> None:
    """Packets of other nodes go there, so each running pod has an Event; all is well after."""
    node = network.third
    running, other = pods.start(pod("running", node.name), pod("other", "node1"))
    ranges = network.ranges()[node.name]
    spec = {"podCIDRs": ranges, "podCIDR": ranges[0]}
    network.api.create(NODES, {"metadata": {"name": "earlier"}, "spec": spec})
    try:
        network.api.wait(
            EVENTS,
            lambda found: any(
                name.startswith("running.") and "to node earlier" in item.get("message", "")
                for name, item in found.items()
            ),
            "an event of the pod says which node has its packets",
        )
    finally:
        network.api.delete(f"{NODES}/earlier")
    await_paths((running, other))


def register_anew(network: Cluster, node: Node, ranges: list[str] | None = None) -> None:
    """Delete a node's object and have its kubelet register again, with these ranges if given."""
    node.daemons["kubelet"].stop()
    network.api.delete(f"{NODES}/{node.name}")
    if ranges:
        spec = {"podCIDRs": ranges, "podCIDR": ranges[0]}
        network.api.create(NODES, {"metadata": {"name": node.name}, "spec": spec})
    node.daemons["kubelet"].start()
    node.daemons["kube-proxy"].restart()  # one that has just begun does not end with its Node


def await_refusal(api: Api, *names: str) -> None:
    """Wait until the Events of pods say that they are refused because ranges overlap."""

    def said(found: Mapping[str, Json], name: str) -> bool:
        texts = [item.get("message", "") for one, item in found.items() if one.startswith(name)]
        return any("overlaps" in text for text in texts)

    api.wait(EVENTS, lambda found: all(said(found, f"{one}.") for one in names), "all are refused")


@pytest.mark.timeout(600)
def test_a_node_gets_the_range_of_another(network: Cluster, agents: Agents, pods: Pods) -> None:
    """Both refuse new pods; no packet is lost of the pods that run on the first one."""
    first, node = network.first, network.third
    one, neighbour, other, _ = pods.start(
        *(pod("one", first.name), pod("neighbour", first.name)),
        *(pod("other", "node2"), pod("before", node.name)),
    )
    pods.delete("before")
    taken = network.ranges()[first.name]
    with traffic((other, one), (one, other), (neighbour, one)):
        register_anew(network, node, taken)
        try:
            for each in (first, node):
                text = each.path(f"{CONFLISTS}/{LIST}")
                wait_until(lambda t=text: '"closed"' in t.read_text(), "a list is not closed")  # type: ignore[misc]
            pods.create(pod("refused-first", first.name), pod("refused-second", node.name))
            await_refusal(network.api, "refused-first", "refused-second")
        finally:
            register_anew(network, node)
        network.wait_ready(seconds=120)
        agents.wait_ready()
        refused, new = [*pods.ready(["refused-first"]), *pods.start(pod("new", node.name))]
        await_paths((new, one), (refused, other))
