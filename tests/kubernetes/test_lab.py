"""The cluster itself, with a network by hand: what all other tests of this folder rely on."""

from __future__ import annotations

from tests.kubernetes import by_hand
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.pods import Pods, pod, reaches
from tests.machine import DIST


def test_smoke(cluster: Cluster, pods: Pods) -> None:
    """Nodes wait for a network and say so; with one, pods reach each other."""
    assert all("cni plugin not initialized" in text for text in cluster.readiness().values())
    nodes = cluster.nodes.values()
    for node in nodes:
        by_hand.install(node, DIST)
    by_hand.connect(cluster.api, nodes)
    by_hand.configure(cluster.api, nodes, cluster.combination.cni_version)
    cluster.wait_ready()

    a, b, c = pods.start(pod("a", "node1"), pod("b", "node1"), pod("c", "node2"))

    for server in (b, c):
        for version in (4, 6):
            seen = reaches(a.netns, server.netns, server.address(version))
            assert seen == a.address(version)
