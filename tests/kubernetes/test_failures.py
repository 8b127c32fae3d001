"""Parts of the cluster that fail while pods start and end: nothing is lost, nothing stays."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.kubernetes.agents import Agents, process_of
from tests.kubernetes.churn import churn
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.leftovers import assert_as_before, found_on
from tests.kubernetes.node import CONFLISTS, Node
from tests.kubernetes.pods import Pods, pod, reaches
from tests.kubernetes.world import ADDRESS4, OWN_NETNS
from tests.waits import wait_until

rotating = pytest.mark.rotating(2)  # by each way of connecting pods, on half of the days

API_AWAY_SECONDS = 60.0
STARTS = 30
ENGINE = r"pycni engine"


def kill_containerd(node: Node, agents: Agents) -> None:
    """Kill the runtime and start it again, as systemd does; its containers go on."""
    node.daemons["containerd"].kill()
    node.start_containerd()


def kill_kubelet(node: Node, agents: Agents) -> None:
    """Kill the kubelet and start it again."""
    node.daemons["kubelet"].kill()
    node.daemons["kubelet"].start()


def kill_agent(node: Node, agents: Agents) -> None:
    """Kill the agent, which starts again."""
    agents.kill(node)


def kill_engine(node: Node, agents: Agents) -> None:
    """Kill the engine, which the agent starts again."""
    pid = process_of(node, ENGINE)
    assert pid, "no engine runs"
    node.command("kill", "-KILL", str(pid))
    wait_until(lambda: process_of(node, ENGINE) not in (0, pid), "no engine is started again")


KILLS: dict[str, Callable[[Node, Agents], None]] = {
    "agent": kill_agent,
    "engine": kill_engine,
    "kubelet": kill_kubelet,
    "containerd": kill_containerd,
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("killed", KILLS)
def test_killed_under_load(network: Cluster, agents: Agents, pods: Pods, killed: str) -> None:
    """Pods that start and end meanwhile become Ready and go; nothing stays behind."""
    node = network.first
    pods.start(pod("warm", node.name))
    pods.delete("warm")
    before = found_on(node)

    with churn(pods, node) as stay:
        KILLS[killed](node, agents)

    agents.wait_ready(node)
    first, *_, last = pods.ready(stay)
    assert reaches(first.netns, last.netns, last.addresses[0])
    pods.delete(*stay)
    assert_as_before(node, before)


@rotating
@pytest.mark.timeout(600)
def test_api_away(network: Cluster, agents: Agents, pods: Pods) -> None:
    """Pods that were scheduled before start without the API server, and a killed agent does."""
    node = network.first
    pods.start(pod("warm", node.name))
    pods.delete("warm")
    before = found_on(node)
    names = [f"cut-off-{number}" for number in range(STARTS)]
    pods.create(*(pod(name, node.name) for name in names))
    network.plane.stop_api()
    attached = _attached(node, before)
    try:
        wait_until(
            lambda: _attached(node, before) >= min(attached + STARTS // 3, STARTS),
            "pods do not start without the API",
        )
        threading.Event().wait(API_AWAY_SECONDS)  # the very thing that is tested
        agents.kill(node)
        agents.wait_ready(node)
    finally:
        network.plane.start_api()

    started = pods.ready(names)

    every = [address for one in started for address in one.addresses]
    assert len(set(every)) == 2 * STARTS
    pods.delete(*names)
    assert_as_before(node, before)


def _attached(node: Node, before: set[str]) -> int:
    return len([one for one in found_on(node) - before if one.startswith("namespace ")])


@rotating
def test_firewall_flushed(network: Cluster, agents: Agents, pods: Pods) -> None:
    """A flush of all rules is mended: pods that run reach the world again, as the node."""
    (one,) = pods.start(pod("flushed", "node1"))
    assert reaches(one.netns, OWN_NETNS, ADDRESS4) == one.node.addresses[0]

    one.node.command("nft", "flush", "ruleset")

    wait_until(
        lambda: reaches(one.netns, OWN_NETNS, ADDRESS4) == one.node.addresses[0],
        "masquerading does not come back",
    )


@rotating
def test_route_deleted(network: Cluster, pods: Pods) -> None:
    """A deleted route to the pods of another node comes back."""
    a, b = pods.start(pod("a", "node1"), pod("b", "node2"))
    (range4,) = [one for one in network.ranges()["node2"] if ":" not in one]
    network.first.command("ip", "route", "delete", range4)

    wait_until(lambda: reaches(a.netns, b.netns, b.address(4)), "the route does not come back")


@rotating
def test_second_configuration(network: Cluster, agents: Agents, pods: Pods) -> None:
    """A list that the runtime prefers is said; one that it does not read changes nothing."""
    node = network.first
    text = node.path(f"{CONFLISTS}/10-pycni.conflist").read_text().replace('"pycni"', '"other"')
    node.write_list("99-other.conflist", text)
    pods.start(pod("a", node.name))
    node.write_list("00-other.conflist", text)
    try:
        wait_until(
            lambda: any("00-other.conflist" in told for told in network.events_of("Node")),
            "no event names the other list",
        )
    finally:
        for name in ("00-other.conflist", "99-other.conflist"):
            node.path(f"{CONFLISTS}/{name}").unlink()
    agents.wait_ready(node)
    pods.start(pod("b", node.name))
