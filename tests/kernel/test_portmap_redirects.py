"""portmap beside the rules of others that redirect its ports first."""

from __future__ import annotations

import pytest

from tests.kernel.ports import HOST4, HOST6, OUTSIDE4, OUTSIDE6, Node, port
from tests.machine import Json, Machine
from tests.sockets import asks, serving

REFERENCES = ["iptables", "nftables"]


@pytest.fixture
def node(machine: Machine) -> Node:
    """Give a node."""
    return Node(machine)


def old(config: Json) -> Json:
    """Return a configuration of a version that the Go plugin knows as we do."""
    previous = {**config["prevResult"], "cniVersion": "1.0.0"}
    return {**config, "cniVersion": "1.0.0", "prevResult": previous}


def by_reference(node: Node, backend: str, *ports: Json, netns: str, containerid: str) -> None:
    """Have the Go plugin map some ports to a container."""
    config = old(node.config(*ports, containerid=containerid, backend=backend))
    node.machine.reference("portmap", "ADD", config, netns, containerid=containerid)


@pytest.mark.rotating(2)
@pytest.mark.both_edges
@pytest.mark.parametrize("ours", ["nftables", "iptables"])
@pytest.mark.parametrize("theirs", REFERENCES)
def test_port_that_the_reference_left_to_a_dead_container(
    node: Node, theirs: str, ours: str
) -> None:
    """It is taken over, the log says so, and the rules for living containers stay."""
    first, second, third = node.attach(), node.attach("c2"), node.attach("c3")
    by_reference(node, theirs, port(8080), port(53, 53, "udp"), netns=first, containerid="c1")
    by_reference(node, theirs, port(8081), netns=third, containerid="c3")
    node.machine.end(first)
    config = node.config(port(8080), containerid="c2", backend=ours)

    with node.machine.process_in(third):
        node.ok("ADD", config, second, containerid="c2")

    with serving(second, "tcp", 80) as (v4, v6), serving(third, "tcp", 80) as (other, _):
        assert asks(node.outside, v4, HOST4, 8080) == OUTSIDE4
        assert asks(node.outside, v6, HOST6, 8080) == OUTSIDE6
        assert asks(node.outside, other, HOST4, 8081) == OUTSIDE4
    if node.machine.engine is None:  # an engine has its own log
        lines = [line for line in node.machine.log if "takes host port 8080/tcp over" in line]
        assert "'c1' by the reference's portmap" in lines[0]
    node.ok("CHECK", config, second, containerid="c2")
    node.ok("DEL", config, second, containerid="c2")


@pytest.mark.parametrize("ours", ["nftables", "iptables"])
@pytest.mark.parametrize("theirs", REFERENCES)
def test_port_that_the_reference_maps_to_a_living_container(
    node: Node, theirs: str, ours: str
) -> None:
    """It is refused by the container's id, and nothing changes."""
    first, second = node.attach(), node.attach("c2")
    by_reference(node, theirs, port(8080), netns=first, containerid="c1")
    before = node.machine.command(node.host, "nft", "-s", "list", "ruleset")  # without counters
    config = node.config(port(81), port(8080), containerid="c2", backend=ours)

    with node.machine.process_in(first):
        error = node.machine.refused("portmap", "ADD", config, second, containerid="c2")

    assert "host port 8080/tcp is mapped for container 'c1' by the reference's" in error["msg"]
    assert node.address(4) in error["msg"]
    assert node.machine.command(node.host, "nft", "-s", "list", "ruleset") == before
    assert node.records() == []


@pytest.mark.parametrize("theirs", REFERENCES)
def test_port_of_the_same_container_by_the_reference(node: Node, theirs: str) -> None:
    """A container that the Go plugin has on one network may have its ports on another."""
    container = node.attach()
    node.attach(ifname="eth1", netns=container)
    by_reference(node, theirs, port(8080), netns=container, containerid="c1")
    config = node.config(port(8080), ifname="eth1", snat=False)

    node.ok("ADD", config, container, ifname="eth1")

    node.ok("CHECK", config, container, ifname="eth1")
    node.ok("DEL", config, container, ifname="eth1")


def test_port_by_the_other_backend(node: Node) -> None:
    """A living container's port by iptables is refused to nftables, a dead one's is taken over."""
    first, second = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(8080), backend="iptables"), first)
    config = node.config(port(8080), containerid="c2")

    error = node.machine.refused("portmap", "ADD", config, second, containerid="c2")
    assert f"is mapped for 'portmap {node.machine.name} c1 eth0'" in error["msg"]
    node.machine.end(first)
    node.ok("ADD", config, second, containerid="c2")

    with serving(second, "tcp", 80, ["0.0.0.0"]) as (server,):
        assert asks(node.outside, server, HOST4, 8080) == OUTSIDE4


FOREIGN = {
    "iptables": "iptables -t nat -A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination {to}",
    "docker": "iptables -t nat -N DOCKER ; iptables -t nat -A DOCKER -p tcp -m tcp --dport 8080"
    " -j DNAT --to-destination {to} ; iptables -t nat -A PREROUTING -j DOCKER",
    "multiport": "iptables -t nat -A PREROUTING -p tcp -m multiport --dports 81,8080"
    " -j REDIRECT --to-ports 9",
    "nft": "nft 'table ip nat {{ chain PREROUTING {{ type nat hook prerouting priority -100;"
    " tcp dport 8080 dnat to {to}; }}; }}'",
    "nft by hand": "nft 'table ip nat {{ chain prerouting {{ type nat hook prerouting priority"
    " -100; tcp dport 8080 dnat to {to}; }}; }}'",
    "nft for both": "nft 'table inet nat {{ chain prerouting {{ type nat hook prerouting priority"
    " -100; tcp dport 8080 dnat ip to {to}; }}; }}'",
}


@pytest.mark.without_engine(reason="an engine has its own log")
@pytest.mark.parametrize("name", FOREIGN)
def test_port_that_another_rule_redirects(node: Node, name: str) -> None:
    """ADD says which chain has the rule, and leaves it alone."""
    container = node.attach()
    command = FOREIGN[name].format(to=f"{node.address(4)}:9")
    node.machine.command(node.host, "sh", "-ec", command)
    before = node.machine.nft()

    node.ok("ADD", node.config(port(8081), port(8080), port(8080, 80, "udp")), container)

    (line,) = (line for line in node.machine.log if "redirects it first" in line)
    assert "host port 8080/tcp does not reach the container: a rule of chain" in line
    assert ("docker" if name == "docker" else "prerouting") in line.lower()
    assert [entry for entry in before if entry not in node.machine.nft()] == []
    node.ok("DEL", node.config(), container)


@pytest.mark.without_engine(reason="an engine has its own log")
def test_rules_for_other_ports_are_not_mentioned(node: Node) -> None:
    """Neither a redirection of another port nor a rule that only accepts this one is in the log."""
    container = node.attach()
    node.machine.do(
        node.host,
        "iptables -t nat -A PREROUTING -p tcp --dport 8081 -j DNAT --to-destination 10.9.0.9:80",
        "iptables -t nat -A PREROUTING -p tcp --dport 8080 -j ACCEPT",
        "iptables -t nat -A PREROUTING -p udp --dport 8080 -j DNAT --to-destination 10.9.0.9:80",
    )

    node.ok("ADD", node.config(port(8080)), container)

    assert [line for line in node.machine.log if "redirects" in line] == []
