"""The annotations of bandwidth, from the API to the kernel's queues."""

from __future__ import annotations

import json

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.pods import PORT, Pods, pod
from tests.runtimes.test_cri_bandwidth import (
    ANNOTATIONS,
    BITS,
    EGRESS,
    INGRESS,
    seconds_of_transfer,
)
from tests.sockets import serving


def test_annotations(network: Cluster, pods: Pods) -> None:
    """Both rates hold for a pod, in both directions."""
    slow, other = pods.start(pod("slow", "node1", annotations=ANNOTATIONS), pod("other", "node2"))

    queues = json.loads(network.first.command("tc", "-j", "qdisc", "show"))
    with serving(slow.netns, "tcp", PORT, ["0.0.0.0"]) as (server,):
        into = seconds_of_transfer(other.netns, server, slow.address(4))
    with serving(other.netns, "tcp", PORT, ["0.0.0.0"]) as (server,):
        out = seconds_of_transfer(slow.netns, server, other.address(4))

    assert {8 * one["options"]["rate"] for one in queues if one["kind"] == "tbf"} == {
        INGRESS,
        EGRESS,
    }
    # A tenth for what passes at once.
    assert into > 0.9 * BITS / INGRESS
    assert out > 0.9 * BITS / EGRESS
