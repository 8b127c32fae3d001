"""Pods reach pods, nodes and the world, by both families, and are reached: on each network."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.pods import PORT, Pod, Pods, pod, reaches
from tests.kubernetes.world import ADDRESS4, ADDRESS6, OWN_NETNS

FAMILIES = (4, 6)
PROTOCOLS = ("tcp", "udp")
WORLD = {4: ADDRESS4, 6: ADDRESS6}


@pytest.fixture(scope="module")
def trio(network: Cluster) -> Iterator[dict[str, Pod]]:
    """Two pods of one node, and one of another."""
    pods = Pods(network.api, network.nodes)
    started = pods.start(pod("a", "node1"), pod("b", "node1"), pod("c", "node2"))
    yield {one.name: one for one in started}
    pods.clear()


def test_addresses(network: Cluster, trio: dict[str, Pod]) -> None:
    """Each pod has one address of each range of its node."""
    ranges = network.ranges()
    for one in trio.values():
        for address, given in zip(one.addresses, ranges[one.node.name], strict=True):
            assert ipaddress.ip_address(address) in ipaddress.ip_network(given)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("path", ["a b", "a c", "c a"])
def test_pod_to_pod(trio: dict[str, Pod], path: str, version: int, protocol: str) -> None:
    """The server sees the client's own address: nothing on the way translates it."""
    client, server = (trio[name] for name in path.split())

    seen = reaches(client.netns, server.netns, server.address(version), protocol)

    assert seen == client.address(version)


@pytest.mark.parametrize("version", FAMILIES)
def test_node_to_pod(network: Cluster, trio: dict[str, Pod], version: int) -> None:
    """Probes come from the node; other nodes reach a pod, too."""
    server = trio["a"]
    for node in (network.first, network.second):
        assert reaches(node.netns, server.netns, server.address(version)), node.name


@pytest.mark.parametrize("version", FAMILIES)
def test_pod_to_node(network: Cluster, trio: dict[str, Pod], version: int) -> None:
    """A pod reaches its own node and another one."""
    for node in (network.first, network.second):
        assert reaches(trio["a"].netns, node.netns, node.addresses[version == 6]), node.name


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", FAMILIES)
def test_egress(trio: dict[str, Pod], version: int, protocol: str) -> None:
    """A host outside, which has no route to pods, sees the node's address."""
    client = trio["a"]

    seen = reaches(client.netns, OWN_NETNS, WORLD[version], protocol)

    assert seen == client.node.addresses[version == 6]


@pytest.mark.parametrize("version", FAMILIES)
def test_size(trio: dict[str, Pod], version: int) -> None:
    """The largest packet that a pod may send arrives whole on another node."""
    client, server = trio["a"], trio["c"]
    mtu = client.node.ip("link", "show", "eth0", netns=client.netns)[0]["mtu"]
    headers = 28 if version == 4 else 48  # of IP and ICMP
    address = server.address(version)
    words = ("ping", "-n", "-c", "1", "-W", "5", "-M", "do", "-s", str(mtu - headers), address)

    done = client.node.run(*words, netns=client.netns)

    assert done.returncode == 0, done.stdout


def test_server_port_is_free_on_the_node(trio: dict[str, Pod]) -> None:
    """A pod's port is not the node's: nothing answers there."""
    client, server = trio["c"], trio["a"]
    assert not reaches(client.netns, server.netns, server.node.addresses[0], port=PORT)
