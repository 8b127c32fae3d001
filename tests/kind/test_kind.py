"""kind, as docs/kubernetes.md has people use it: three commands, and pods reach all they should."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from tests.kind.cluster import AGENTS, MANIFEST, UNINSTALL, Cluster, Pod, World, outside
from tests.kubernetes.api import NODES, SERVICES, condition_of, is_ready
from tests.kubernetes.pods import PORT, pod, reaches, reaches_soon, service

FAMILIES = (4, 6)
PROTOCOLS = ("tcp", "udp")
HOST_PORT = 18081
OWN = (
    "/proc/self/ns/net"  # docker's host, which has no route to pods: a host outside of the cluster
)
FIRST, SECOND = "kind-worker", "kind-worker2"
SYSTEM_PODS = "/api/v1/namespaces/kube-system/pods"
# Prints what is left on a node of the agent, the engine, the plugins and their attachments.
LEFT = """
for folder in /etc/cni/net.d /opt/cni/bin /var/lib/cni/pycni-agent /run/pycni/attachments; do
    ls -A $folder 2>/dev/null
done
ip route show proto 112; ip -6 route show proto 112
ip -brief link | grep -E '^(veth|pycni)'
nft list tables | grep pycni
pgrep -f '[p]ycni engine'
"""


@pytest.fixture(scope="module")
def trio(cluster: Cluster) -> Iterator[dict[str, Pod]]:
    """Two pods of one worker, one with a Service and a host port, and one of the other worker."""
    ports = [
        {"containerPort": PORT, "hostPort": HOST_PORT, "protocol": name.upper()}
        for name in PROTOCOLS
    ]
    cluster.api.create(SERVICES, service("a", {"app": "a"}))
    started = cluster.start(pod("a", FIRST, ports=ports), pod("b", FIRST), pod("c", SECOND))
    yield {one.name: one for one in started}
    cluster.clear(["a"])


def address_of(cluster: Cluster, name: str, version: int) -> str:
    """Return the cluster's address of a Service, of a family."""
    found = cluster.api.get(f"{SERVICES}/{name}")["spec"]["clusterIPs"]
    return next(str(one) for one in found if (":" in one) == (version == 6))


def test_without_a_network(bare: Cluster) -> None:
    """Before the manifest no node is Ready, and each says that it lacks a network."""
    for item in bare.api.list(NODES):
        ready = condition_of(item, "Ready")
        assert ready["status"] == "False"
        assert "cni plugin not initialized" in ready["message"]


def test_ready(cluster: Cluster) -> None:
    """After the manifest all nodes and agents are Ready; no agent was started twice."""
    agents = cluster.api.wait(
        AGENTS,
        lambda found: len(found) == 3 and all(map(is_ready, found.values())),
        "agents are Ready",
    )

    restarts = {
        name: item["status"]["containerStatuses"][0]["restartCount"]
        for name, item in agents.items()
    }
    assert set(restarts.values()) == {0}
    assert {
        name for name, item in cluster.api.wait(NODES, bool, "nodes").items() if is_ready(item)
    } == {
        "kind-control-plane",
        FIRST,
        SECOND,
    }


def test_dns_runs(cluster: Cluster) -> None:
    """The pods of CoreDNS, which kind has left waiting for a network, become Ready."""
    path = "/api/v1/namespaces/kube-system/pods?labelSelector=k8s-app=kube-dns"
    cluster.api.wait(
        path, lambda found: found and all(map(is_ready, found.values())), "CoreDNS is Ready"
    )


def test_addresses(cluster: Cluster, trio: dict[str, Pod]) -> None:
    """Each pod has an address of each range of its node."""
    nodes = cluster.nodes()
    for one in trio.values():
        for address, given in zip(one.addresses, nodes[one.node].ranges, strict=True):
            assert ipaddress.ip_address(address) in ipaddress.ip_network(given)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("path", ["a b", "a c", "c a"])
def test_pod_to_pod(trio: dict[str, Pod], path: str, version: int, protocol: str) -> None:
    """Pods reach each other on one node and across nodes, and see each other's own address."""
    client, server = (trio[name] for name in path.split())

    seen = reaches(client.netns, server.netns, server.address(version), protocol)

    assert seen == client.address(version)


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("client", ["a", "b", "c"])
def test_service(cluster: Cluster, trio: dict[str, Pod], client: str, version: int) -> None:
    """A Service is reached from its own pod, from another one of the node and from another node."""
    address = address_of(cluster, "a", version)

    assert reaches_soon(trio[client].netns, trio["a"].netns, address, port=80)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("client", ["outside", "b", "c"])
def test_host_port(
    cluster: Cluster, trio: dict[str, Pod], client: str, version: int, protocol: str
) -> None:
    """A host port is reached from outside of the cluster and from pods of both nodes."""
    netns = OWN if client == "outside" else trio[client].netns
    address = cluster.nodes()[FIRST].address(version)

    assert reaches(netns, trio["a"].netns, address, protocol, HOST_PORT)


@pytest.mark.parametrize("version", FAMILIES)
def test_masquerade(world: World, cluster: Cluster, trio: dict[str, Pod], version: int) -> None:
    """A host outside sees the node's address, not the pod's."""
    seen = reaches(trio["a"].netns, OWN, outside(world, version))

    assert seen == cluster.nodes()[FIRST].address(version)


def test_dns(cluster: Cluster, trio: dict[str, Pod]) -> None:
    """A pod finds a Service by its name."""
    words = ("exec", "c", "--", "nslookup", "a.default.svc.cluster.local")

    assert address_of(cluster, "a", 4) in cluster.kubectl(*words)


def test_engine_outlives_the_agent(cluster: Cluster) -> None:
    """The engine is the node's: it goes on when the agent's pod ends, as in an upgrade."""
    before = cluster.on(FIRST, "pgrep", "-o", "-f", "[p]ycni engine").stdout
    agent = next(one for one in cluster.api.list(AGENTS) if one["spec"]["nodeName"] == FIRST)
    old = agent["metadata"]["name"]
    cluster.api.delete(f"{SYSTEM_PODS}/{old}")
    cluster.api.wait(
        AGENTS,
        lambda found: old not in found and len(found) == 3 and all(map(is_ready, found.values())),
        "another agent is Ready",
    )

    assert before
    assert cluster.on(FIRST, "pgrep", "-o", "-f", "[p]ycni engine").stdout == before


def test_node_restarts_with_another_address(cluster: Cluster) -> None:
    """docker gives a worker another address: routes follow it, and it takes pods again."""
    agents = {item["spec"]["nodeName"]: item for item in cluster.api.list(AGENTS)}
    cluster.restart_elsewhere(SECOND)
    old = {entry["ip"] for entry in agents[SECOND]["status"]["podIPs"]}
    cluster.api.wait(
        NODES,
        lambda found: not old & _addresses(found[SECOND]),
        "the Node has its new address",
        180,
    )
    cluster.wait_for_nodes(180)
    client, server = cluster.start(pod("d", FIRST), pod("e", SECOND))
    for version in FAMILIES:
        reaches_soon(client.netns, server.netns, server.address(version))
        seen = reaches(server.netns, client.netns, client.address(version))
        assert seen == server.address(version)
    cluster.clear()


def _addresses(item: dict[str, object]) -> set[str]:
    status = item["status"]
    assert isinstance(status, dict)
    return {one["address"] for one in status["addresses"]}


def test_uninstall(cluster: Cluster) -> None:
    """The page's commands take all off the nodes; a node whose pods use the network waits."""
    system = ("--namespace", "kube-system")
    cluster.clear()  # of tests before, whatever was selected
    cluster.kubectl(*system, "delete", "daemonset", "pycni")
    cluster.kubectl("apply", "--filename", UNINSTALL)
    dns = cluster.api.list(f"{SYSTEM_PODS}?labelSelector=k8s-app=kube-dns")
    busy = {item["spec"]["nodeName"] for item in dns}
    cluster.api.wait(
        f"{SYSTEM_PODS}?labelSelector=app.kubernetes.io/name=pycni-uninstall",
        lambda found: (
            {item["spec"]["nodeName"] for item in found.values() if is_ready(item)}
            == cluster.nodes().keys() - busy
        ),
        "nodes without pods are done, and no others",
    )

    cluster.kubectl(*system, "scale", "deployment", "coredns", "--replicas", "0")
    rollout = ("rollout", "status", "daemonset", "pycni-uninstall", "--timeout", "5m")
    cluster.kubectl(*system, *rollout, seconds=320)
    last = ("--filename", UNINSTALL, "--filename", MANIFEST, "--ignore-not-found")
    cluster.kubectl("delete", *last)

    for node in cluster.nodes():
        assert cluster.on(node, "sh", "-c", LEFT).stdout == "", node
