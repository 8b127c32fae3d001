"""CHECK of every plugin names all differences at once, each with the remedy that fits."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import limits, points, test_tuning
from tests.kernel.ports import Node, port
from tests.kernel.test_bridge_check import attached, full
from tests.kernel.walls import Walls

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.machine import Json, Machine

    Setting = Callable[[Machine], tuple[str, Json, str]]

AGAIN = "delete and add the attachment again"


def bridge(machine: Machine) -> tuple[str, Json, str]:
    """Attach to a bridge; return plugin, configuration of a CHECK and the namespace."""
    return "bridge", *attached(machine, full(machine))


def ptp(machine: Machine) -> tuple[str, Json, str]:
    """Attach by ptp."""
    config = points.network(machine, ipMasq=True)
    container = machine.container()
    result = machine.ok("ptp", "ADD", config, container)
    return "ptp", {**config, "prevResult": result}, container


def portmap(machine: Machine) -> tuple[str, Json, str]:
    """Attach with three host ports."""
    node = Node(machine)
    container = node.attach()
    config = node.config(port(8080), port(8081, 81), port(8082, 82, "udp"))
    node.ok("ADD", config, container)
    return "portmap", config, container


def portmap_by_iptables(machine: Machine) -> tuple[str, Json, str]:
    """Attach with three host ports by iptables."""
    node = Node(machine)
    container = node.attach()
    config = node.config(port(8080), port(8081, 81), port(8082, 82, "udp"), backend="iptables")
    node.ok("ADD", config, container)
    return "portmap", config, container


def firewall(machine: Machine) -> tuple[str, Json, str]:
    """Attach with rules, in an isolated bridge."""
    walls = Walls(machine)
    container = walls.attach()
    config = walls.config(ingressPolicy="isolated", backend="nftables")
    walls.ok("ADD", ingressPolicy="isolated", backend="nftables")
    return "firewall", config, container


def tuning(machine: Machine) -> tuple[str, Json, str]:
    """Attach with everything that tuning sets."""
    container, config = test_tuning.container(machine), test_tuning.full(machine)
    machine.ok("tuning", "ADD", config, container)
    return "tuning", config, container


def bandwidth(machine: Machine) -> tuple[str, Json, str]:
    """Attach with limits in both directions."""
    container, config = limits.container(machine), limits.config(machine, **limits.BOTH)
    machine.ok("bandwidth", "ADD", config, container)
    return "bandwidth", config, container


def host_local(machine: Machine) -> tuple[str, Json, str]:
    """Reserve an address of each IP version."""
    config, container = attached(machine, full(machine))
    return "host-local", config, container


def loopback(machine: Machine) -> tuple[str, Json, str]:
    """Set lo up."""
    config = {"cniVersion": "1.1.0", "name": machine.name, "type": "loopback"}
    container = machine.container()
    result = machine.ok("loopback", "ADD", config, container)
    return "loopback", {**config, "prevResult": result}, container


def static(machine: Machine) -> tuple[str, Json, str]:
    """Give two addresses that the result of the chain no longer has."""
    addresses = [{"address": "10.9.0.5/24"}, {"address": "fd00:9::5/64"}]
    ipam = {"type": "static", "addresses": addresses}
    config = {"cniVersion": "1.1.0", "name": machine.name, "type": "bridge", "ipam": ipam}
    return "static", {**config, "prevResult": {"cniVersion": "1.1.0"}}, machine.container()


SEVERAL: dict[str, tuple[Setting, str, str, list[str]]] = {
    "bridge": (
        bridge,
        "ip link set br0 promisc on; ip addr del 10.9.0.1/24 dev br0; bridge link set dev VETH"
        " hairpin off; nft flush ruleset; echo 0 >/proc/sys/net/ipv4/ip_forward",
        "ip link set eth0 mtu 1400; ip route flush 10.3.0.0/16; ip addr del fd00:9::2/64 dev eth0",
        [
            "MTU of 'eth0' is 1400",
            "address fd00:9::2/64",
            "route to 10.3.0.0/16",
            "port flag hairpin",
            "MAC filter",
            "gateway 10.9.0.1/24",
            "no longer forwards IPv4",
        ],
    ),
    "ptp": (
        ptp,
        "nft flush ruleset; ip route del 10.9.0.2; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
        "ip route del default; ip -6 route del default",
        [
            "route to 0.0.0.0/0",
            "route to ::/0",
            "host's route to 10.9.0.2",
            "no longer forwards IPv6",
            "masquerade element of 10.9.0.2",
            "masquerade element of fd00:9::2",
        ],
    ),
    "portmap": (
        portmap,
        "nft flush map inet pycni hostports4; nft flush map inet pycni hostports6;"
        " nft flush chain inet pycni hostport_output",
        "",
        ["host port 8080/tcp", "host port 8081/tcp", "host port 8082/udp", "hostport_output"],
    ),
    "portmap by iptables": (
        portmap_by_iptables,
        "iptables -t nat -F CNI-HOSTPORT-DNAT; ip6tables -t nat -F",
        "",
        ["no iptables rule of CNI-HOSTPORT-DNAT", "ip6tables rule of host port 8082/udp"],
    ),
    "firewall": (
        firewall,
        "nft flush chain ip filter CNI-FORWARD; nft flush chain ip6 filter FORWARD;"
        " nft flush set inet pycni isolated_bridges",
        "",
        ["-s 10.9.0.2/32", "table ip6 filter", "'br0' is not in set 'isolated_bridges'"],
    ),
    "tuning": (
        tuning,
        "",
        "ip link set eth0 promisc off; ip link set eth0 mtu 1401; sysctl -qw net.core.somaxconn=5",
        ["promisc of", "mtu of", "sysctl net/core/somaxconn is '5'"],
    ),
    "bandwidth": (
        bandwidth,
        "tc qdisc del dev host1 root; tc qdisc del dev host1 ingress",
        "",
        ["root qdisc of 'host1'", "receives is not redirected"],
    ),
    "loopback": (loopback, "", "ip link set lo down", ["lo in"]),
    "static": (static, "", "", ["10.9.0.5/24", "fd00:9::5/64"]),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_every_difference_is_named(machine: Machine, name: str) -> None:
    """The message has the whole list, and the advice to add again comes once."""
    attach, on_host, in_container, named = SEVERAL[name]
    plugin, config, container = attach(machine)
    on_host = on_host.replace("VETH", (*machine.ports(), "")[0])
    machine.command(machine.host, "sh", "-ec", on_host)
    machine.command(container, "sh", "-ec", in_container)

    error = machine.refused(plugin, "CHECK", config, container)

    assert [text for text in named if text not in error["msg"]] == [], error["msg"]
    assert error["msg"].count(AGAIN) <= 1
    assert len(error["msg"]) < 5000


def test_every_lost_lease_is_named(machine: Machine) -> None:
    """bridge passes on what host-local finds, beside its own findings, with one advice."""
    config, container = attached(machine, full(machine))
    for path in Path(machine.data_dir, machine.name).glob("*[.:]*"):
        os.unlink(path)
    machine.do(container, "ip link set eth0 mtu 1400")

    error = machine.refused("bridge", "CHECK", config, container)

    assert all(one in error["msg"] for one in ("10.9.0.2", "fd00:9::2", "MTU of 'eth0'"))
    assert error["msg"].count(AGAIN) == 1
    assert error["msg"].endswith(AGAIN)


def test_thousands_of_differences_make_one_short_message(machine: Machine) -> None:
    """The first are named, the rest is counted: a log line stays a line."""
    node = Node(machine)
    container = node.attach()
    config = node.config(*(port(10_000 + 3 * number) for number in range(1000)))
    node.ok("ADD", config, container)
    machine.do(machine.host, "nft flush ruleset")

    error = machine.refused("portmap", "CHECK", config, container)

    assert re.search(r"and \d{4} more differences", error["msg"])
    assert len(error["msg"]) < 5000


REMEDIES: dict[str, tuple[Setting, str]] = {
    "forwarding": (bridge, "echo 0 >/proc/sys/net/ipv4/ip_forward"),
    "forwarding of IPv6": (ptp, "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding"),
    "gateways": (bridge, "ip addr flush dev br0 scope global"),
    "bridge is down": (bridge, "ip link set br0 down"),
    "port": (bridge, "ip link set VETH nomaster"),
    "gateway of ptp": (ptp, "ip addr flush dev VETH scope global"),
    "route of ptp": (ptp, "ip route del 10.9.0.2; ip -6 route del fd00:9::2"),
    "ifb is down": (bandwidth, "ip link set IFB down"),
    "localhost": (portmap, "sysctl -qw net.ipv4.conf.br0.route_localnet=0"),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_the_remedy_fits(machine: Machine, name: str) -> None:
    """The commands that CHECK names, and no new ADD, make the next CHECK pass."""
    attach, line = REMEDIES[name]
    plugin, config, container = attach(machine)
    links = machine.command(machine.host, "ip", "-br", "link", "show", "type", "ifb").split()
    line = line.replace("VETH", (*machine.ports(), "")[0]).replace("IFB", (*links, "")[0])
    machine.command(machine.host, "sh", "-ec", line)

    error = machine.refused(plugin, "CHECK", config, container)
    remedies = re.findall(r": run '([^']+)'", error["msg"])

    assert remedies, error["msg"]
    assert AGAIN not in error["msg"]
    for remedy in remedies:
        machine.command(machine.host, "sh", "-ec", remedy)
    machine.ok(plugin, "CHECK", config, container)
