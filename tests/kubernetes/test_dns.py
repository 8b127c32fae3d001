"""Names of Services, by CoreDNS as a pod of the cluster."""

from __future__ import annotations

import pytest

from tests.kubernetes import dns
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.pods import Pods, pod, service
from tests.kubernetes.test_services import address_of
from tests.kubernetes.world import DNS4
from tests.waits import wait_until


@pytest.fixture(scope="module")
def names(network: Cluster) -> Cluster:
    """A cluster with CoreDNS."""
    dns.deploy(network)
    return network


def test_names(names: Cluster, pods: Pods) -> None:
    """A pod of each node gets the addresses of a Service, both families."""
    pods.create(service("named", {"app": "a"}))
    for one in pods.start(pod("a", "node1"), pod("b", "node2"), pod("c", "node3")):
        for version in (4, 6):
            wanted = [address_of(names, "named", version)]
            question = (one.netns, DNS4, "named.default.svc.cluster.local", version)
            wait_until(lambda q=question, w=wanted: _answers(*q) == w, f"{question}: {wanted}")  # type: ignore[misc]


def test_resolver_of_a_container(names: Cluster, pods: Pods) -> None:
    """A program in a container finds the server by the resolv.conf that the kubelet wrote."""
    pods.start(pod("a", "node1"))

    told = names.plane.kubectl(
        "exec", "a", "--", "nslookup", "kubernetes.default.svc.cluster.local"
    )

    assert address_of(names, "kubernetes", 4) in told


def _answers(netns: str, server: str, name: str, version: int) -> list[str]:
    try:
        return dns.resolve(netns, server, name, version)
    except OSError:
        return []
