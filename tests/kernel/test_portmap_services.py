"""portmap beside kube-proxy in mode ipvs: host ports are for the node's addresses alone.

A bridge stands for the dummy device kube-ipvs0, and a socket of the node for IPVS, which takes
packets where the node's own sockets do.
"""

from __future__ import annotations

import pytest

from tests.kernel.ports import GATEWAY4, HOST4, HOST6, OUTSIDE4, OUTSIDE6, Node, port
from tests.machine import Machine
from tests.sockets import asks, serving

SERVICE4, SERVICE6 = "10.96.0.1", "fd00:96::1"
LATER4, LATER6 = "10.96.0.2", "fd00:96::2"  # of a Service that comes after the port


@pytest.fixture
def node(machine: Machine) -> Node:
    """Give a node."""
    return Node(machine)


def add_device(node: Node, name: str = "kube-ipvs0") -> None:
    """Make a device with the addresses of a Service."""
    node.machine.do(node.host, f"ip link add {name} type bridge")
    add_service(node, SERVICE4, SERVICE6, name)


def add_service(node: Node, v4: str, v6: str, name: str = "kube-ipvs0") -> None:
    """Give the device the addresses of a Service."""
    node.machine.do(
        node.host,
        f"ip address add {v4}/32 dev {name}",
        f"ip address add {v6}/128 dev {name} nodad",
    )


@pytest.mark.rotating(2)
@pytest.mark.both_edges
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("device", ["kube-ipvs0", "nodelocaldns"])
def test_service_with_the_number_of_a_host_port(node: Node, device: str, protocol: str) -> None:
    """It is reached by the node and by containers, also one that was made after the port."""
    add_device(node, device)
    container, pod = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(443, 443, protocol)), container)
    add_service(node, LATER4, LATER6, device)
    services = [SERVICE4, SERVICE6, LATER4, LATER6]

    with (
        serving(node.host, protocol, 443, services) as servers,
        serving(container, protocol, 443) as (v4, v6),
    ):
        for server, address in zip(servers, services, strict=True):
            assert asks(pod, server, address, 443) == node.address(6 if ":" in address else 4, "c2")
            assert asks(node.host, server, address, 443) == address
        assert asks(node.outside, v4, HOST4, 443) == OUTSIDE4
        assert asks(node.outside, v6, HOST6, 443) == OUTSIDE6
        assert asks(pod, v4, HOST4, 443) == GATEWAY4
        assert asks(pod, v4, GATEWAY4, 443) == GATEWAY4
        assert asks(node.host, v4, HOST4, 443) == HOST4
        assert asks(node.host, v4, "127.0.0.1", 443) == GATEWAY4
    node.ok("CHECK", node.config(port(443, 443, protocol)), container)
    node.ok("DEL", node.config(), container)
    assert node.machine.nft() == []


def test_ports_of_a_node_that_gets_services(node: Node) -> None:
    """From the next ADD on, or GC, the ports that were there before are none of Services either."""
    first, second = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(443, 443)), first)
    add_device(node)

    node.ok("ADD", node.config(port(80), containerid="c2"), second, containerid="c2")

    with serving(node.host, "tcp", 443, [SERVICE4]) as (server,), serving(first, "tcp", 443):
        assert asks(second, server, SERVICE4, 443) == node.address(4, "c2")
        node.machine.do(node.host, "nft delete chain inet pycni hostport_services_prerouting")
        config = {
            **node.config(),
            "cni.dev/valid-attachments": [
                {"containerID": name, "ifname": "eth0"} for name in ("c1", "c2")
            ],
        }
        assert asks(second, server, SERVICE4, 443) == ""
        node.ok("GC", config)
        assert asks(second, server, SERVICE4, 443) == node.address(4, "c2")


def test_new_address_of_the_node(node: Node) -> None:
    """Clients outside reach a port by it at once, containers after the next ADD."""
    add_device(node)
    first, second = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(443, 443)), first)
    node.machine.do(node.host, "ip address add 192.0.2.9/24 dev uplink")

    with serving(first, "tcp", 443) as (v4, _):
        assert asks(node.outside, v4, "192.0.2.9", 443) == OUTSIDE4
        node.ok("ADD", node.config(port(80), containerid="c2"), second, containerid="c2")
        assert asks(second, v4, "192.0.2.9", 443) == GATEWAY4


def test_node_that_has_no_services_any_more(node: Node) -> None:
    """Without the device all addresses of the node are for host ports again."""
    add_device(node)
    first, second = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(443, 443)), first)
    assert "hostport_services" in node.machine.command(node.host, "nft", "list", "ruleset")
    node.machine.do(node.host, "ip link delete kube-ipvs0")

    node.ok("ADD", node.config(port(80), containerid="c2"), second, containerid="c2")

    assert "hostport_services" not in node.machine.command(node.host, "nft", "list", "ruleset")


@pytest.mark.rotating(2)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("first", ["kube-proxy", "port"])
def test_service_by_the_backend_iptables(node: Node, first: str, protocol: str) -> None:
    """kube-proxy's own rules for its Services come before the chain of our host ports."""
    container, pod = node.attach(), node.attach("c2")
    config = node.config(port(443, 443, protocol), backend="iptables")
    add_device(node)
    if first == "port":
        node.ok("ADD", config, container)
    add_rules_of_kube_proxy(node, protocol)
    if first == "kube-proxy":
        node.ok("ADD", config, container)

    with (
        serving(node.host, protocol, 443, [SERVICE4, SERVICE6]) as servers,
        serving(container, protocol, 443) as (v4, v6),
    ):
        for server, address in zip(servers, (SERVICE4, SERVICE6), strict=True):
            assert asks(pod, server, address, 443) == node.address(6 if ":" in address else 4, "c2")
            assert asks(node.host, server, address, 443) == address
        assert asks(node.outside, v4, HOST4, 443) == OUTSIDE4
        assert asks(node.outside, v6, HOST6, 443) == OUTSIDE6
        assert asks(pod, v4, HOST4, 443) == GATEWAY4
    node.ok("CHECK", config, container)
    node.ok("DEL", config, container)


def add_rules_of_kube_proxy(node: Node, protocol: str) -> None:
    """Accept what is for Services, as kube-proxy in mode ipvs: at the beginning of its hooks."""
    for command, address in (("iptables", SERVICE4), ("ip6tables", SERVICE6)):
        rule = f"-A KUBE-SERVICES -d {address} -p {protocol} --dport 443 -j ACCEPT"
        node.machine.do(
            node.host,
            f"{command} -t nat -N KUBE-SERVICES",
            f"{command} -t nat {rule}",
            *(f"{command} -t nat -I {hook} -j KUBE-SERVICES" for hook in ("PREROUTING", "OUTPUT")),
        )


PROXIES = {
    "iptables": "iptables -t nat -N KUBE-SERVICES; iptables -t nat -A KUBE-SERVICES -d {at}"
    " -p tcp --dport 443 -j DNAT --to-destination {to}; for hook in PREROUTING OUTPUT;"
    " do iptables -t nat -I $hook -j KUBE-SERVICES; done",
    "nftables": "nft 'table ip kube-proxy {{ chain nat-prerouting {{ type nat hook prerouting"
    " priority dstnat; ip daddr {at} tcp dport 443 dnat to {to}; }}; chain nat-output {{ type nat"
    " hook output priority -100; ip daddr {at} tcp dport 443 dnat to {to}; }}; }}'",
}


@pytest.mark.parametrize(
    ("mode", "backend"),
    # Not nftables beside our iptables: of two tables the kernel asks the younger one first.
    [("iptables", "nftables"), ("nftables", "nftables"), ("iptables", "iptables")],
)
@pytest.mark.parametrize("first", ["kube-proxy", "port"])
def test_service_on_an_address_of_the_node(node: Node, first: str, mode: str, backend: str) -> None:
    """An external address or node port of kube-proxy's other modes has the port, in any order."""
    container, pod = node.attach(), node.attach("c2")
    command = PROXIES[mode].format(at=HOST4, to=f"{node.address(4, 'c2')}:80")
    config = node.config(port(443, 443), backend=backend)
    if first == "port":
        node.ok("ADD", config, container)
    node.machine.command(node.host, "sh", "-ec", command)
    if first == "kube-proxy":
        node.ok("ADD", config, container)

    with serving(pod, "tcp", 80) as (server, _), serving(container, "tcp", 443) as (_, v6):
        assert asks(node.outside, server, HOST4, 443) == OUTSIDE4
        assert asks(node.host, server, HOST4, 443)
        assert asks(node.outside, v6, HOST6, 443) == OUTSIDE6
    node.ok("DEL", config, container)
