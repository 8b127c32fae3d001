"""portmap: what ADD, DEL and CHECK make of ports, as real connections and `nft` show."""

from pathlib import Path
from typing import Any

import pytest

from tests.machine import Json, Machine
from tests.sockets import asks, serving

HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
OUTSIDE4, OUTSIDE6 = "192.0.2.2", "2001:db8::2"
GATEWAY4, GATEWAY6 = "10.9.0.1", "fd00:9::1"


def port(host: int, container: int = 80, protocol: str = "tcp", **keys: str) -> Json:
    """Return a port mapping."""
    return {"hostPort": host, "containerPort": container, "protocol": protocol, **keys}


class Node:
    """A machine with an outside world and one dual-stack network."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.host = machine.host
        self.outside = machine.outside()
        self.results: dict[str, Json] = {}
        for family, key in (("ipv4", "ip_forward"), ("ipv6", "conf/all/forwarding")):
            machine.command(self.host, "sh", "-c", f"echo 1 > /proc/sys/net/{family}/{key}")

    def network(self, **keys: Any) -> Json:
        """Return the network's bridge."""
        ipam = {
            "type": "host-local",
            "dataDir": self.machine.data_dir,
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        return self.machine.network(**{"ipam": ipam, **keys})

    def attach(
        self, containerid: str = "c1", *, ifname: str = "eth0", netns: str = "", **keys: Any
    ) -> str:
        """Return a container on the network."""
        netns = netns or self.machine.container()
        result = self.machine.ok(
            "bridge", "ADD", self.network(**keys), netns, containerid=containerid, ifname=ifname
        )
        self.results[f"{containerid} {ifname}"] = result
        return netns

    def config(
        self, *ports: Json, containerid: str = "c1", ifname: str = "eth0", **keys: Any
    ) -> Json:
        """Return portmap's configuration behind the bridge's."""
        return {
            "cniVersion": "1.1.0",
            "name": self.machine.name,
            "type": "portmap",
            "capabilities": {"portMappings": True},
            "runtimeConfig": {"portMappings": list(ports)},
            "prevResult": self.results[f"{containerid} {ifname}"],
            **keys,
        }

    def ok(self, command: str, config: Json, netns: str = "", **attachment: Any) -> Json:
        """Run portmap, which must succeed."""
        return self.machine.ok("portmap", command, config, netns, **attachment)

    def address(self, version: int, containerid: str = "c1", ifname: str = "eth0") -> str:
        """Return a container's address."""
        texts = [ip["address"] for ip in self.results[f"{containerid} {ifname}"]["ips"]]
        (found,) = (text for text in texts if (":" in text) == (version == 6))
        return str(found.partition("/")[0])


@pytest.fixture
def node(machine: Machine) -> Node:
    """Give a node."""
    return Node(machine)


def records(node: Node) -> list[Path]:
    """Return portmap's records."""
    return list(Path(node.machine.state_dir, "attachments").glob("portmap-*"))


def test_layout(node: Node) -> None:
    """`nft` shows what was sent by netlink as it would show its own."""
    container = node.attach()
    config = node.config(
        port(8080), port(53, 53, "udp", hostIP=HOST4), port(99, 9, "sctp", hostIP="::")
    )

    node.ok("ADD", config, container)

    before = node.machine.nft()
    listing = node.machine.command(node.host, "nft", "list", "ruleset")
    node.machine.command(node.host, "nft", "-f", "-", stdin=f"flush ruleset\n{listing}")
    assert node.machine.nft() == before
    node.ok("CHECK", config, container)
    node.ok("DEL", config, container)
    assert node.machine.nft() == []
    assert records(node) == []


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_reach(node: Node, protocol: str) -> None:
    """Everybody reaches the port; only whom replies would miss is masqueraded."""
    container = node.attach()
    neighbour = node.attach("c2")
    node.ok("ADD", node.config(port(8080, 80, protocol)), container)

    with serving(container, protocol, 80) as (v4, v6):
        assert asks(node.outside, v4, HOST4, 8080) == OUTSIDE4
        assert asks(node.outside, v6, HOST6, 8080) == OUTSIDE6
        assert asks(node.host, v4, "127.0.0.1", 8080) == GATEWAY4
        assert asks(node.host, v4, HOST4, 8080) == HOST4
        assert asks(node.host, v6, HOST6, 8080) == HOST6
        assert asks(container, v4, HOST4, 8080) == GATEWAY4
        assert asks(container, v6, HOST6, 8080) == GATEWAY6
        assert asks(neighbour, v4, HOST4, 8080) == GATEWAY4
        assert asks(neighbour, v6, HOST6, 8080) == GATEWAY6
