"""whereabouts behind interfaces of ours: a foreign IPAM plugin with its addresses in the API.

It has no CHECK, and its DEL succeeds whatever happens: a network with it sets `disableCheck`.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import scope
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.world import BRIDGE, run
from tests.machine import DIST, TOOLS, Json

FOLDER = TOOLS / "whereabouts"
POOLS = "/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/kube-system/ippools"
RANGES = {"bridge": "198.51.100.0/29", "macvlan": "198.51.100.8/29"}
HOSTS = 6  # addresses of a range
SECONDS = 60  # whereabouts elects a leader for each call

pytestmark = pytest.mark.skipif(
    not scope.ALL, reason="whereabouts is built and tried in the long target alone"
)


class Network:
    """Containers on a network of one plugin, and the pool of their addresses."""

    def __init__(self, cluster: Cluster, type: str) -> None:
        self._cluster, self._type = cluster, type
        self.range = ipaddress.ip_network(RANGES[type])
        kubeconfig = cluster.plane.conf("super-admin")
        settings = (
            cluster.plane.folder / "whereabouts.conf"
        )  # where a pod of it writes one on nodes
        settings.write_text(json.dumps({"kubernetes": {"kubeconfig": kubeconfig}}))
        keys: Json = {"bridge": "wa0"} if type == "bridge" else {"master": BRIDGE}
        self.config = {
            "cniVersion": "1.0.0",
            "name": f"whereabouts-{type}",
            "type": type,
            **keys,
            "ipam": {
                "type": "whereabouts",
                "range": RANGES[type],
                "configuration_path": str(settings),
            },
        }

    def call(self, command: str, container: str) -> subprocess.CompletedProcess[str]:
        """Call the plugin for a container as a runtime does."""
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}",
            "CNI_IFNAME": "net1",
            "CNI_PATH": f"{DIST}:{FOLDER}",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}",
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        return subprocess.run(
            [DIST / self._type],
            input=json.dumps(self.config),
            env=environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def add(self, container: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """Add a container and return its address."""
        done = self.call("ADD", container)
        assert done.returncode == 0, done.stdout
        (found,) = json.loads(done.stdout)["ips"]
        return ipaddress.ip_interface(found["address"]).ip

    def delete(self, container: str) -> None:
        """Delete a container's attachment."""
        done = self.call("DEL", container)
        assert (done.returncode, done.stdout) == (0, ""), done.stdout

    def holders(self) -> set[str]:
        """Return the containers that have an address in the API."""
        pools = [one["spec"] for one in self._cluster.api.list(POOLS)]
        found = [one for one in pools if one["range"] == str(self.range)]
        return {entry["id"] for one in found for entry in one["allocations"].values()}


@pytest.fixture(scope="module")
def kinds(cluster: Cluster) -> None:
    """The API knows the pools of whereabouts."""
    if not (FOLDER / "whereabouts").exists():
        pytest.fail("PYCNI_TEST_ALL=1 deploy/prerequisites.sh --kubernetes builds whereabouts")
    crds = [word for path in sorted(FOLDER.glob("*.yaml")) for word in ("-f", str(path))]
    cluster.plane.kubectl("apply", *crds)
    cluster.plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *crds)


@pytest.fixture(params=RANGES)
def network(request: pytest.FixtureRequest, cluster: Cluster, kinds: None) -> Network:
    """A network of each plugin."""
    return Network(cluster, request.param)


@pytest.fixture
def containers(network: Network) -> Iterator[list[str]]:
    """As many network namespaces as the range has addresses, and one more."""
    names = [f"{network.config['type']}{number}" for number in range(HOSTS + 1)]
    for name in names:
        run("ip", "netns", "add", name)
    yield names
    for name in names:
        if Path("/run/netns", name).exists():
            run("ip", "netns", "delete", name)


def interfaces(container: str) -> set[str]:
    """Return the names of a container's interfaces."""
    told = json.loads(run("ip", "-n", container, "-j", "link"))
    return {one["ifname"] for one in told}


def test_addresses_come_from_the_api_and_go_back(network: Network, containers: list[str]) -> None:
    """ADD takes one there for each container, DEL gives it back, also without the namespace."""
    first, second = containers[:2]

    addresses = {network.add(first), network.add(second)}

    assert len(addresses) == 2
    assert all(one in network.range for one in addresses)
    assert network.holders() == {first, second}
    assert interfaces(first) == {"lo", "net1"}
    run("ip", "netns", "delete", second)
    for container in (first, second, second):
        network.delete(container)
    assert network.holders() == set()
    assert interfaces(first) == {"lo"}


def test_full_range(network: Network, containers: list[str]) -> None:
    """The refusal says what whereabouts said, and leaves nothing; a freed address helps."""
    *holders, last = containers
    for container in holders:
        network.add(container)

    refused = network.call("ADD", last)

    assert "Could not allocate IP" in json.loads(refused.stdout)["msg"]
    assert interfaces(last) == {"lo"}
    network.delete(holders[0])
    network.add(last)
    for container in (*holders, last):
        network.delete(container)
    assert network.holders() == set()
