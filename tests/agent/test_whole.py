"""Mode wireguard by whole agents: frozen programs that watch Kubernetes' own API server.

The tests are one story of three nodes, in the order of this file.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from itertools import permutations
from pathlib import Path

import pytest

from tests.agent.whole import KEY_FILE, MARK, NAMES, PATIENCE, PAUSE, WholeCluster
from tests.agent.wire import ends, kinds, of_networks
from tests.machine import machine_at
from tests.traffic import traffic
from tests.waits import wait_until

pytestmark = [pytest.mark.full_kernel, pytest.mark.emulated_machine, pytest.mark.timeout(900)]
UPLINK_MTU = 1500
MTU = UPLINK_MTU - 60  # 20 of IP, 8 of UDP, 32 of WireGuard
PORT = 51820


@pytest.fixture(scope="module")
def cluster(frozen: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeCluster]:
    """The cluster, whose agents have announced their keys, with a pod on each node."""
    folder = tmp_path_factory.mktemp("whole")
    with machine_at(folder, "whole") as machine:
        made = WholeCluster(frozen, folder, machine)
        try:
            made.start(*NAMES)
            made.await_tunnels(*NAMES)
            for name in NAMES:
                made.start_pod(name)
            yield made
        finally:
            made.close()


def assert_encrypted(cluster: WholeCluster, packets: Iterable[bytes]) -> None:
    """Require that packets between nodes are of tunnels alone: no pod, no text of a pod."""
    found = list(packets)
    assert of_networks(found, cluster.ranges) == []
    assert [one for one in found if MARK in one] == []
    nodes = {ipaddress.ip_address(host.addresses[0]) for host in cluster.hosts.values()}
    between = [one for one in found if nodes.issuperset(ends(one))]
    assert set(kinds(between)) == {(socket.IPPROTO_UDP, PORT)}


def test_packets_are_encrypted(cluster: WholeCluster) -> None:
    """Keys come from the nodes by the API; pods reach each other, and none is seen on the wire."""
    keys = cluster.kube.keys()
    assert keys.keys() == {*NAMES}
    assert len({*keys.values()}) == len(NAMES)
    wire, inner = cluster.wire("b"), cluster.inner("b")

    assert [pair for pair in permutations(NAMES, 2) if not cluster.reaches(*pair)] == []
    for address in cluster.pods["b"].addresses:
        assert cluster.pings(cluster.pods["a"], address, "-p", MARK.hex(), "-s64")

    assert_encrypted(cluster, wire.packets())
    decrypted = inner.packets()
    assert len(of_networks(decrypted, cluster.ranges)) == len(decrypted)
    assert sum(MARK in one for one in decrypted) == 4  # question and answer by two families


def test_mtu(cluster: WholeCluster) -> None:
    """The largest packet of a pod becomes the largest one of the uplink; none is in pieces."""
    first = cluster.hosts["a"].list()["plugins"][0]
    assert (first["mtu"], cluster.pods["a"].mtu) == (MTU, MTU)
    wire = cluster.wire("b")

    for address in cluster.pods["b"].addresses:
        header = 48 if ":" in address else 28
        assert cluster.pings(cluster.pods["a"], address, "-Mdo", f"-s{MTU - header}")
        assert not cluster.pings(cluster.pods["a"], address, "-Mdo", f"-s{MTU - header + 1}")

    packets = wire.packets()
    assert max(map(len, packets)) == UPLINK_MTU
    assert_encrypted(cluster, packets)


def test_killed_while_packets_flow(cluster: WholeCluster) -> None:
    """SIGKILL of an agent and its next start cost no packet, and change no key."""
    a, b, c = (cluster.pods[name] for name in NAMES)
    keys = cluster.kube.keys()
    wire = cluster.wire("a")

    with traffic((a, b), (b, a), (c, a)):
        cluster.hosts["a"].kill()
        cluster.start("a")
        assert cluster.await_tunnels(*NAMES) == keys

    assert_encrypted(cluster, wire.packets())


def test_a_lost_key(cluster: WholeCluster) -> None:
    """An agent whose key file is gone makes another key, which the others take over."""
    before = cluster.kube.keys()
    host = cluster.hosts["b"]
    wire = cluster.wire("b")
    host.kill()
    host.path(KEY_FILE).unlink()

    with cluster.knocking("a", "b"), cluster.knocking("b", "c"):
        cluster.start("b")
        changed = lambda: cluster.kube.keys()["b"] != before["b"]  # noqa: E731
        wait_until(changed, "b announces no key", PATIENCE, PAUSE)
        after = cluster.await_tunnels(*NAMES)

    assert {name for name in NAMES if after[name] != before[name]} == {"b"}
    assert [pair for pair in permutations(NAMES, 2) if not cluster.reaches(*pair)] == []
    assert host.path(KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert_encrypted(cluster, wire.packets())


def test_a_node_goes_and_comes(cluster: WholeCluster) -> None:
    """Without its Node a node is forgotten; the same Node once more gets its key from the agent."""
    key = cluster.kube.keys()["c"]
    a, b, c = (cluster.pods[name] for name in NAMES)

    with traffic((a, b)):
        cluster.kube.delete_node("c")
        cluster.await_tunnels("a", "b")
        assert not cluster.pings(a, c.address(4), "-W2")
        cluster.register("c")
        cluster.await_tunnels(*NAMES)

    assert cluster.kube.keys()["c"] == key
    wire = cluster.wire("a")
    assert cluster.reaches("a", "c")
    assert_encrypted(cluster, wire.packets())
