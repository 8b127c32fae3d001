"""Services and host ports, from everywhere and to everywhere, also to the asking pod itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import pytest

from tests.kubernetes.api import SERVICES
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.pods import (
    PORT,
    Choice,
    Pod,
    Pods,
    chooses,
    pod,
    reaches,
    reaches_soon,
    served,
    service,
)
from tests.kubernetes.world import OWN_NETNS
from tests.sockets import Server, open_socket
from tests.waits import wait_until

FAMILIES = (4, 6)
PROTOCOLS = ("tcp", "udp")
NODE_PORT, HOST_PORT, HOST_PORT_SCTP = 30080, 18081, 18082
TURNS = 12  # each of two pods is left out by chance once in 2^11
BOTH = {"web": "yes"}


@pytest.fixture(scope="module")
def group(network: Cluster) -> Iterator[dict[str, Pod]]:
    """Two pods on each of two nodes, one of each in the Service web; self has a alone; and h."""
    pods = Pods(network.api, network.nodes)
    ports = [
        {"containerPort": PORT, "hostPort": HOST_PORT, "protocol": protocol}
        for protocol in ("TCP", "UDP")
    ]
    ports.append({"containerPort": PORT, "hostPort": HOST_PORT_SCTP, "protocol": "SCTP"})
    node_ports = [
        {
            "name": name,
            "protocol": name.upper(),
            "port": 80,
            "targetPort": PORT,
            "nodePort": NODE_PORT,
        }
        for name in PROTOCOLS
    ]
    pods.create(
        service("web", BOTH, type="NodePort", ports=node_ports),
        service("self", {"app": "a"}),
        service("sticky", BOTH, sessionAffinity="ClientIP"),
    )
    started = pods.start(
        pod("a", "node1", labels=BOTH),
        pod("b", "node1"),
        pod("c", "node2", labels=BOTH),
        pod("d", "node2"),
        pod("h", "node1", ports=ports),  # apart: portmap masks its clients on the same node
    )
    yield {one.name: one for one in started}
    pods.clear()


def choices_of_both(
    client: str, servers: Sequence[Server], address: str, port: int
) -> list[Choice | None]:
    """Ask until kube-proxy knows of both pods, and each turn is answered; return the answers."""
    found: list[Choice | None] = []

    def complete() -> bool:
        found[:] = [chooses(client, servers, address, port) for _ in range(TURNS)]
        return {one and one.server for one in found} == {0, 1}

    wait_until(complete, f"{address}:{port} does not lead to both pods")
    return found


def has_sctp() -> bool:
    """Tell whether the kernel has sockets of SCTP."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


def address_of(cluster: Cluster, name: str, version: int) -> str:
    """Return the cluster's address of a Service, of a family."""
    found = cluster.api.get(f"{SERVICES}/{name}")["spec"]["clusterIPs"]
    return next(str(one) for one in found if (":" in one) == (version == 6))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("client", ["b", "d"])
def test_cluster_address(
    network: Cluster, group: dict[str, Pod], client: str, version: int, protocol: str
) -> None:
    """A pod of each node reaches both pods of a Service, and both see its own address."""
    address = address_of(network, "web", version)
    asking = group[client]
    with served([group["a"].netns, group["c"].netns], protocol, version) as servers:
        found = choices_of_both(asking.netns, servers, address, 80)

    assert {one and one.client for one in found} == {asking.address(version)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", FAMILIES)
def test_itself(network: Cluster, group: dict[str, Pod], version: int, protocol: str) -> None:
    """A pod reaches itself by its Service: the packet leaves it and comes back."""
    itself = group["a"]
    address = address_of(network, "self", version)

    assert reaches_soon(itself.netns, itself.netns, address, protocol, 80)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("client", ["b", "d"])
def test_affinity(
    network: Cluster, group: dict[str, Pod], client: str, version: int, protocol: str
) -> None:
    """With affinity, all connections of a pod of each node lead to one and the same pod."""
    address = address_of(network, "sticky", version)
    asking = group[client].netns
    with served([group["a"].netns, group["c"].netns], protocol, version) as servers:
        wait_until(lambda: chooses(asking, servers, address, 80), "the Service answers")
        found = [chooses(asking, servers, address, 80) for _ in range(TURNS)]

    assert len({one and one.server for one in found}) == 1
    assert found[0] is not None


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("node", ["node1", "node3"])
@pytest.mark.parametrize("client", ["world", "b", "d"])
def test_node_port(
    network: Cluster, group: dict[str, Pod], client: str, node: str, *, version: int, protocol: str
) -> None:
    """A host outside and pods reach a Service by a node with one of its pods, and by another."""
    address = network.nodes[node].addresses[version == 6]
    asking = OWN_NETNS if client == "world" else group[client].netns
    with served([group["a"].netns, group["c"].netns], protocol, version) as servers:
        choices_of_both(asking, servers, address, NODE_PORT)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("client", ["world", "node1", "node2", "h", "b", "d"])
def test_host_port(
    network: Cluster, group: dict[str, Pod], client: str, version: int, protocol: str
) -> None:
    """A host port is reached from outside, both nodes, pods of both nodes, and the pod itself."""
    places = {"world": OWN_NETNS, **{name: one.netns for name, one in network.nodes.items()}}
    places |= {name: one.netns for name, one in group.items()}
    address = network.first.addresses[version == 6]

    assert reaches(places[client], group["h"].netns, address, protocol, HOST_PORT)


def test_host_port_of_localhost(network: Cluster, group: dict[str, Pod]) -> None:
    """The node reaches it by 127.0.0.1, too."""
    assert reaches(network.first.netns, group["h"].netns, "127.0.0.1", "tcp", HOST_PORT)


def test_host_port_sctp(network: Cluster, group: dict[str, Pod]) -> None:
    """An SCTP host port leads to the pod."""
    if not has_sctp():
        pytest.skip("this kernel has no SCTP sockets (CONFIG_IP_SCTP)")
    address = network.first.addresses[0]
    assert reaches(OWN_NETNS, group["h"].netns, address, "sctp", HOST_PORT_SCTP)


def test_api_by_its_service(network: Cluster, group: dict[str, Pod]) -> None:
    """A pod connects to the API server by the Service kubernetes."""
    address = address_of(network, "kubernetes", 4)
    with open_socket(group["d"].netns, "tcp", address) as sock:
        sock.connect((address, 443))
