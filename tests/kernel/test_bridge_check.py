"""bridge CHECK: silent on what ADD made, and exact about what is no longer so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.machine import Json, Machine

MAC = "02:00:00:00:12:34"


def full(machine: Machine, **keys: object) -> Json:
    """Return a dual-stack configuration that uses everything CHECK looks at."""
    ipam = {
        "type": "host-local",
        "dataDir": machine.data_dir,
        "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]],
        "routes": [
            {"dst": "10.3.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 5},
            {"dst": "10.4.0.0/16", "table": 100},
            {"dst": "10.5.0.0/16", "scope": 253},
            {"dst": "10.6.0.0/16", "gw": "0.0.0.0"},
        ],
    }
    flags = ("isDefaultGateway", "ipMasq", "hairpinMode", "portIsolation", "macspoofchk")
    return machine.network(**{**dict.fromkeys(flags, True), "mtu": 1450, "ipam": ipam, **keys})


def attached(machine: Machine, config: Json) -> tuple[Json, str]:
    """Return an attachment's configuration for CHECK, and its namespace."""
    container = machine.container()
    result = machine.ok("bridge", "ADD", config, container)
    return {**config, "prevResult": result}, container


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({}, id="full"),
        pytest.param({"ipam": None, "isDefaultGateway": None, "ipMasq": None}, id="l2"),
        pytest.param({"hairpinMode": False, "promiscMode": True}, id="promiscuous"),
        pytest.param({"ipMasqBackend": "iptables"}, id="iptables"),
        pytest.param({"isDefaultGateway": False, "isGateway": False}, id="no-gateway"),
    ],
)
def test_nothing_has_changed(machine: Machine, version: str, keys: Json) -> None:
    """A fresh attachment passes, L2 networks and routes in other tables included."""
    config, container = attached(machine, full(machine, cniVersion=version, **keys))

    machine.ok("bridge", "CHECK", config, container)


@pytest.mark.parametrize(
    "line",
    [
        "ip link set br0 promisc on",
        "ip link add low address 02:00:00:00:00:01 master br0 type veth peer name other",
        "ip addr add 10.77.0.1/24 dev br0",
    ],
    ids=["promiscuous", "floating-mac", "address"],
)
def test_what_others_do_to_the_bridge(machine: Machine, line: str) -> None:
    """A bridge is shared: promiscuity, ports and addresses of others are no drift."""
    machine.do(machine.host, "ip link add br0 type bridge")
    config, container = attached(machine, machine.network(isGateway=False))
    machine.do(machine.host, line)

    machine.ok("bridge", "CHECK", config, container)


CONTAINER = [
    ("ip link delete eth0", "interface 'eth0' is missing"),
    ("ip link set eth0 down", "interface 'eth0' is down"),
    (f"ip link set eth0 address {MAC}", f"MAC of 'eth0' is {MAC}, ADD gave"),
    ("ip link set eth0 mtu 1400", "MTU of 'eth0' is 1400, ADD gave 1450"),
    ("ip addr del 10.9.0.2/24 dev eth0", "address 10.9.0.2/24 of 'eth0' is missing"),
    ("ip addr del fd00:9::2/64 dev eth0", "address fd00:9::2/64 of 'eth0' is missing"),
    ("ip route del default", "route to 0.0.0.0/0 via 10.9.0.1"),
    ("ip route replace default via 10.9.0.77 dev eth0", "there is to 0.0.0.0/0 via 10.9.0.77"),
    ("ip -6 route del default", "route to ::/0 via fd00:9::1"),
    ("ip -6 route replace default via fd00:9::77 dev eth0", "there is to ::/0 via fd00:9::77"),
    ("ip route flush 10.3.0.0/16", "route to 10.3.0.0/16 via 10.9.0.1 metric 5 mtu 1300"),
    (
        "ip route change 10.3.0.0/16 via 10.9.0.1 metric 5 mtu 1200 advmss 1200",
        "there is to 10.3.0.0/16 via 10.9.0.1 metric 5 mtu 1200",
    ),
    (
        "ip route change 10.3.0.0/16 via 10.9.0.1 metric 5 mtu 1300 advmss 1000",
        "route to 10.3.0.0/16 via 10.9.0.1",
    ),
    ("ip route flush table 100", "route to 10.4.0.0/16 via 10.9.0.1 table 100"),
    ("ip route del 10.5.0.0/16", "route to 10.5.0.0/16"),
    ("ip route replace 10.6.0.0/16 via 10.9.0.1", "there is to 10.6.0.0/16 via 10.9.0.1"),
]
HOST = [
    ("ip link delete br0", "bridge 'br0' is missing"),
    ("ip link set br0 down", "bridge 'br0' is down"),
    ("ip link set PORT nomaster", "'PORT' is not a port of bridge 'br0'"),
    ("ip link delete PORT", "interface 'eth0' is missing"),
    (f"ip link set PORT address {MAC}", f"MAC of 'PORT' is {MAC}, ADD gave"),
    ("ip link set PORT mtu 1400", "MTU of 'PORT' is 1400, ADD gave 1450"),
    ("bridge link set dev PORT hairpin off", "port flag hairpin of 'PORT' is off"),
    ("bridge link set dev PORT isolated off", "port flag isolated of 'PORT' is off"),
    ("ip addr del 10.9.0.1/24 dev br0", "gateway 10.9.0.1/24 is missing on 'br0'"),
    ("ip addr del fd00:9::1/64 dev br0", "gateway fd00:9::1/64 is missing on 'br0'"),
    ("echo 0 >/proc/sys/net/ipv4/ip_forward", "no longer forwards IPv4"),
    ("echo 0 >/proc/sys/net/ipv6/conf/all/forwarding", "no longer forwards IPv6"),
    (
        "nft delete element inet pycni masquerade4 { 10.9.0.2 }",
        "the masquerade element of 10.9.0.2 in 'table inet pycni' is missing",
    ),
    (
        "nft delete element inet pycni masquerade6 { fd00:9::2 }",
        "the masquerade element of fd00:9::2 in 'table inet pycni' is missing",
    ),
    ("nft flush chain inet pycni postrouting", "chain 'postrouting' of 'table inet pycni'"),
    ("nft delete table inet pycni", "the masquerade element of 10.9.0.2"),
    (
        "nft delete element bridge pycni guarded_ports { PORT }",
        "'PORT' is no longer in the MAC filter's set 'guarded_ports'",
    ),
    ("nft flush set bridge pycni allowed_macs", "is no longer in the MAC filter's set"),
    ("nft flush chain bridge pycni prerouting", "'table bridge pycni' has lost its rules"),
    ("nft delete table bridge pycni", "MAC filter"),
]


@pytest.mark.parametrize(
    ("where", "line", "named"),
    [
        pytest.param(where, line, named, id=line)
        for where, lines in (("container", CONTAINER), ("host", HOST))
        for line, named in lines
    ],
)
def test_drift(machine: Machine, where: str, line: str, named: str) -> None:
    """CHECK names the one thing that has changed, and how it can be mended."""
    config, container = attached(machine, full(machine))
    port = machine.ports()[0]
    netns = container if where == "container" else machine.host
    machine.command(netns, "sh", "-c", line.replace("PORT", port))

    error = machine.refused("bridge", "CHECK", config, container)

    assert error["code"] == 999
    assert named.replace("PORT", port) in error["msg"]
    remedies = ("delete and add the attachment again", ": run '")
    assert any(one in error["msg"] for one in remedies)


@pytest.mark.parametrize(
    "line",
    ["ip link set br0 promisc off", "ip link set br0 type bridge"],
    ids=["promiscuous", "nothing"],
)
def test_drift_of_a_promiscuous_bridge(machine: Machine, line: str) -> None:
    """With promiscMode a bridge that is no longer promiscuous is named."""
    config, container = attached(machine, machine.network(promiscMode=True))
    machine.do(machine.host, line)

    reply = machine.invoke("bridge", "CHECK", config, container)

    assert (b"'br0' is not promiscuous" in reply.stdout) == ("promisc" in line)


@pytest.mark.parametrize(
    ("where", "line", "named"),
    [
        ("container", "ip link set eth0 down", "'eth0' is down"),
        ("container", f"ip link set eth0 address {MAC}", "MAC of 'eth0'"),
        ("host", "ip link set PORT nomaster", "not a port of bridge 'br0'"),
        ("host", "nft delete table bridge pycni", "MAC filter"),
    ],
)
def test_drift_of_an_l2_network(machine: Machine, where: str, line: str, named: str) -> None:
    """Without IPAM all that is there is checked likewise."""
    config, container = attached(machine, machine.network(ipam=None, macspoofchk=True))
    line = line.replace("PORT", machine.ports()[0])
    machine.do(container if where == "container" else machine.host, line)

    error = machine.refused("bridge", "CHECK", config, container)

    assert named in error["msg"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("iptables -t nat -F POSTROUTING", "iptables rule POSTROUTING -s 10.9.0.2"),
        ("iptables -t nat -F", "iptables"),
        ("ip6tables -t nat -F POSTROUTING", "ip6tables rule POSTROUTING -s fd00:9::2"),
    ],
)
def test_drift_of_iptables(machine: Machine, line: str, named: str) -> None:
    """A rule of the iptables backend that was flushed is named."""
    config, container = attached(machine, full(machine, ipMasqBackend="iptables"))
    machine.do(machine.host, line)

    error = machine.refused("bridge", "CHECK", config, container)

    assert named in error["msg"]


@pytest.mark.both_edges
def test_drift_of_the_lease(machine: Machine) -> None:
    """The lease is IPAM's to check, and its error is passed on."""
    config, container = attached(machine, machine.network())
    os.unlink(Path(machine.data_dir, machine.name, "10.9.0.2"))

    error = machine.refused("bridge", "CHECK", config, container)

    assert "10.9.0.2" in error["msg"]
    assert "host-local" in error["msg"]


def test_end_of_another_s_pair(machine: Machine) -> None:
    """An interface with the right name, MAC and address that leads elsewhere is noticed.

    Its other end has the number of the old port: each namespace counts its own.
    """
    config, container = attached(machine, machine.network(mtu=1500))
    end, port = machine.link(container, "eth0"), machine.link(machine.host, machine.ports()[0])
    assert end is not None
    assert port is not None
    elsewhere, second = machine.container(), machine.container()
    machine.do(container, "ip link delete eth0")
    machine.do(
        machine.host,
        f"ip link add vethother index {port['ifindex']} up master br0 type veth"
        f" peer name eth0 index {end['ifindex']} netns {second}",
    )
    machine.do(
        container,
        f"ip link add eth0 address {end['address']} index {end['ifindex']} type veth"
        f" peer name far index {port['ifindex']} netns {elsewhere}",
        "ip addr add 10.9.0.2/24 dev eth0",
        "ip link set eth0 up",
        "ip route add default via 10.9.0.1",
    )

    error = machine.refused("bridge", "CHECK", config, container)

    assert "the host's end of 'eth0' is missing" in error["msg"]


def test_interface_that_became_something_else(machine: Machine) -> None:
    """An interface called CNI_IFNAME that is no veth is named."""
    config, container = attached(machine, machine.network(ipam=None, mtu=1500))
    entry = config["prevResult"]["interfaces"][2]
    machine.do(
        container,
        "ip link delete eth0",
        f"ip link add eth0 address {entry['mac']} type bridge",
        "ip link set eth0 up",
    )

    error = machine.refused("bridge", "CHECK", config, container)

    assert "'eth0' is no veth but 'bridge'" in error["msg"]


@pytest.mark.both_edges
def test_prev_result_is_required(machine: Machine) -> None:
    """CHECK without prevResult has code 7, with a malformed one too."""
    config, container = attached(machine, machine.network())

    for previous in (None, {"cniVersion": "1.1.0", "ips": [{"address": "x"}]}):
        error = machine.refused("bridge", "CHECK", {**config, "prevResult": previous}, container)

        assert error["code"] == 7
        assert "prevResult" in error["msg"]


@pytest.mark.both_edges
def test_check_of_a_namespace_that_is_gone(machine: Machine) -> None:
    """A namespace that cannot be opened has code 8."""
    config, container = attached(machine, machine.network(ipam=None))
    machine.forget(container)

    assert machine.refused("bridge", "CHECK", config, container)["code"] == 8


def test_what_later_plugins_change_is_tolerated(machine: Machine) -> None:
    """A MAC that a chained plugin has set and noted, and interfaces that it added, pass."""
    config, container = attached(machine, machine.network())
    tuning = {
        "cniVersion": "1.1.0",
        "name": machine.name,
        "type": "tuning",
        "mac": MAC,
        "promisc": True,
        "prevResult": config["prevResult"],
    }
    result = machine.reference("tuning", "ADD", tuning, container)
    result["interfaces"].append({"name": "ifb7", "mac": MAC})
    result["ips"].append({"address": "10.77.0.1/24", "interface": 3})

    machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)

    link = machine.link(container, "eth0")
    assert link is not None
    assert link["address"] == MAC
