"""Mode auto, the manifest's own: direct to nodes on a common link, vxlan to one behind a router."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kubernetes.agents import Agents, Way
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.node import MTU, Node
from tests.kubernetes.pods import Pods, pod
from tests.kubernetes.test_nodes import await_paths
from tests.kubernetes.world import ADDRESS4, ADDRESS6
from tests.waits import wait_until

pytestmark = [pytest.mark.rotating(2), pytest.mark.timeout(600)]

OVERHEAD = 50  # of VXLAN over IPv4


def exchange(old: Agents, new: Agents, cluster: Cluster) -> None:
    """Have all nodes work with the settings of `new`."""
    old.stop()
    new.start()
    new.wait_ready()
    cluster.wait_ready()


@pytest.fixture
def routed(network: Cluster, agents: Agents) -> Iterator[Cluster]:
    """A cluster in mode auto, whose first and third node know each other behind the world."""
    pairs = [(network.first, network.third), (network.third, network.first)]
    for node, other in pairs:
        for address, hop in zip(other.addresses, (ADDRESS4, ADDRESS6), strict=True):
            node.command("ip", "route", "add", address, "via", hop)
    auto = type(agents)(network, Way("auto", agents.way.interface), agents.dist)
    exchange(agents, auto, network)
    yield network
    for node, other in pairs:
        for address in other.addresses:
            node.command("ip", "route", "delete", address)
    exchange(auto, agents, network)


def device(node: Node, ranges: list[str]) -> set[str]:
    """Return the devices by which a node leads to ranges of pods."""
    found = [*node.ip("-4", "route"), *node.ip("-6", "route")]
    return {one["dev"] for one in found if one["dst"] in ranges}


def test_auto(routed: Cluster, pods: Pods) -> None:
    """Pods of all three reach each other; the MTU is that of vxlan everywhere."""
    first, second, third = routed.nodes.values()
    ranges = routed.ranges()
    ways = [(first, second, "eth0"), (first, third, "pycni-vxlan"), (third, first, "pycni-vxlan")]
    for node, other, name in ways:
        wait_until(
            lambda n=node, o=other, d=name: device(n, ranges[o.name]) == {d},  # type: ignore[misc]
            f"{node.name} leads to {other.name} by {name}",
        )

    one, two, three = pods.start(*(pod(f"on-{name}", name) for name in routed.nodes))

    await_paths((one, two), (one, three), (two, three))
    (link,) = one.node.ip("link", "show", "eth0", netns=one.netns)
    assert link["mtu"] == MTU - OVERHEAD
