"""Many pods at once on one node: all become Ready, and nothing of them stays."""

from __future__ import annotations

import pytest

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.leftovers import assert_as_before, found_on
from tests.kubernetes.pods import Pods, pod, reaches

pytestmark = pytest.mark.rotating(2)  # by each way of connecting pods, on half of the days

AT_ONCE = 60
BURST_SECONDS = 240.0  # on a busy machine of two cores; 20 on a free one


@pytest.mark.timeout(600)
def test_many_at_once(network: Cluster, pods: Pods) -> None:
    """Sixty start together: no sandbox fails, no address twice; all go: the node is as before."""
    node = network.first
    pods.start(pod("warm", node.name))  # makes what a network makes once
    pods.delete("warm")
    before = found_on(node)
    failed = network.events("FailedCreatePodSandBox", "FailedKillPod")

    started = pods.start(
        *(pod(f"many-{n}", node.name) for n in range(AT_ONCE)), seconds=BURST_SECONDS
    )

    every = [address for one in started for address in one.addresses]
    assert len(set(every)) == len(every) == 2 * AT_ONCE
    assert reaches(started[0].netns, started[-1].netns, started[-1].addresses[0])
    pods.delete(*(one.name for one in started), seconds=BURST_SECONDS)
    assert_as_before(node, before)
    assert network.events("FailedCreatePodSandBox", "FailedKillPod") == failed
