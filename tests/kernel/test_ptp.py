"""ptp on a real kernel: traffic, what is refused, CHECK, DEL, GC, STATUS, many at once."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cni_common.node.liveness import GRACE_SECONDS
from tests.kernel.points import IPV4, IPV6, NOTHING, STATIC, left, network
from tests.machine import REFERENCE_BIN, Json, Machine, addresses_of, files_below
from tests.snapshot import changes

KEY = "cni.dev/valid-attachments"


def attached(machine: Machine, config: Json, containerid: str = "c1") -> tuple[str, Json]:
    """Return a container and the result of its ADD."""
    container = machine.container()
    return container, machine.ok("ptp", "ADD", config, container, containerid=containerid)


# --- ADD -----------------------------------------------------------------------------------


@pytest.mark.both_edges
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_traffic(machine: Machine, backend: str) -> None:
    """Each first packet arrives: at the neighbour, the gateway, the host and the world."""
    config = network(machine, ipMasq=True, ipMasqBackend=backend)
    machine.outside()
    first, result = attached(machine, config)
    _, other = attached(machine, config, "c2")

    assert all(machine.ping(first, address) for address in addresses_of(other))
    assert all(machine.ping(first, ip["gateway"]) for ip in result["ips"])
    assert all(machine.ping(machine.host, address) for address in addresses_of(result))
    assert machine.ping(first, "192.0.2.2")
    assert machine.ping(first, "2001:db8::2")


def test_ipv6_is_ready(machine: Machine) -> None:
    """No end looks for duplicates, of which there can be none, and the first packet passes."""
    container, result = attached(machine, network(machine, IPV6))

    ours, theirs = (entry["name"] for entry in result["interfaces"])
    for netns, name in ((machine.host, ours), (container, theirs)):
        sysctl = f"/proc/sys/net/ipv6/conf/{name}/accept_dad"
        assert machine.command(netns, "cat", sysctl) == "0\n"
        assert machine.command(netns, "ip", "-6", "addr", "show", "dev", name, "tentative") == ""
    assert machine.ping(container, result["ips"][0]["gateway"])
    assert machine.ping(machine.host, addresses_of(result)[0])


def test_result(machine: Machine) -> None:
    """The result has both ends as they are, and every address on the container's."""
    container, result = attached(machine, network(machine, mtu=1400, dns={"domain": "a"}))

    names = [entry["name"] for entry in result["interfaces"]]
    links = [machine.link(machine.host, names[0]), machine.link(container, names[1])]
    assert [(link["address"], link["mtu"]) for link in links if link] == [
        (entry["mac"], 1400) for entry in result["interfaces"]
    ]
    assert [entry["mtu"] for entry in result["interfaces"]] == [1400, 1400]
    assert [ip["interface"] for ip in result["ips"]] == [1, 1]
    assert result["dns"] == {"domain": "a"}


def test_addresses_of_one_subnet(machine: Machine) -> None:
    """Two addresses of a subnet, and one that is a subnet by itself, are all reached."""
    addresses = ["10.9.0.5/24", "10.9.0.6/24", "10.9.1.7/32", "fd00:9::5/64", "fd00:9::6/128"]
    gateways = {4: "10.9.0.1", 6: "fd00:9::1"}
    listed = [{"address": a, "gateway": gateways[6 if ":" in a else 4]} for a in addresses]
    config = network(machine, ipam={"type": "static", "addresses": listed})

    container, result = attached(machine, config)

    assert all(machine.ping(machine.host, address) for address in addresses_of(result))
    assert machine.ping(container, "10.9.0.1")
    machine.ok("ptp", "CHECK", {**config, "prevResult": result}, container)
    machine.ok("ptp", "DEL", config, container)
    assert left(machine) == NOTHING


def test_no_router_is_heeded(machine: Machine) -> None:
    """Neither end takes router advertisements (CVE-2020-10749)."""
    container, result = attached(machine, network(machine))

    for netns, name in ((machine.host, result["interfaces"][0]["name"]), (container, "eth0")):
        path = f"/proc/sys/net/ipv6/conf/{name}/accept_ra"
        assert machine.command(netns, "cat", path).strip() == "0"


@pytest.mark.parametrize(
    ("keys", "code", "says"),
    [
        ({"ipam": {}}, 7, "no plugin name provided"),
        ({"ipam": None}, 7, "no plugin name provided"),
        ({"ipam": {"type": "absent"}}, 50, "absent"),
        ({"ipam": {"type": "static"}}, 999, "missing IP config"),
        ({"ipam": {**STATIC, "addresses": [{"address": "10.9.0.5/24"}]}}, 7, "no gateway"),
        (
            {"ipam": {**STATIC, "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.5"}]}},
            7,
            "as its gateway",
        ),
        (
            {"ipam": {**STATIC, "routes": [{"dst": "10.3.0.0/16", "gw": "10.9.0.77"}]}},
            7,
            "cannot reach gateway 10.9.0.77",
        ),
        ({"mtu": 67}, 7, "mtu"),
        ({"mtu": 1279}, 7, "1280"),
        ({"mtu": "1400"}, 7, "mtu"),
        ({"ipMasqBackend": "pf"}, 7, "ipMasqBackend"),
    ],
)
def test_refused(machine: Machine, keys: Json, code: int, says: str) -> None:
    """An impossible configuration is refused by name, and nothing is left of the attempt."""
    container = machine.container()

    error = machine.refused("ptp", "ADD", network(machine, **keys), container)

    assert (error["code"], says in error["msg"]) == (code, True), error
    assert left(machine) == NOTHING
    assert [link["ifname"] for link in machine.ip(container, "link")] == ["lo"]


@pytest.mark.parametrize("netns", ["same", "other"])
def test_refused_twice(machine: Machine, netns: str) -> None:
    """An attachment that lives is neither replaced nor harmed by another ADD for it."""
    config = network(machine, ipMasq=True)
    container, result = attached(machine, config)
    before = machine.snapshot(container)

    where = container if netns == "same" else machine.container()
    error = machine.refused("ptp", "ADD", config, where)

    assert error["code"] == 4
    after = machine.snapshot(container)
    assert {k: v for k, v in after.items() if k != "files"} == {
        k: v for k, v in before.items() if k != "files"
    }
    assert all(machine.ping(machine.host, address) for address in addresses_of(result))


def test_address_of_another(machine: Machine) -> None:
    """An address that another container has is refused, and that container keeps its traffic."""
    config = network(machine, ipam=STATIC)
    container, _ = attached(machine, config)
    second = machine.container()

    error = machine.refused("ptp", "ADD", config, second, containerid="c2")

    assert "the host has a route to 10.9.0.5 already, over 'veth" in error["msg"]
    assert len(machine.ports()) == 1
    assert machine.ping(machine.host, "10.9.0.5")
    assert machine.ping(container, "10.9.0.1")


def test_address_of_a_dead_one(machine: Machine) -> None:
    """The next owner of an ended container's address does not wait for its pair to go."""
    config = network(machine, ipam=STATIC)
    container, _ = attached(machine, config)
    # So the kernel does not take the pair away.
    machine.do(container, f"ip link set eth0 netns {machine.host} name of-c1")
    machine.forget(container)
    second = machine.container()

    machine.ok("ptp", "ADD", config, second, containerid="c2")

    assert len(machine.ports()) == 1
    assert machine.ping(machine.host, "10.9.0.5")
    machine.ok("ptp", "DEL", config, "", containerid="c1")
    assert machine.ping(machine.host, "10.9.0.5")
    machine.ok("ptp", "DEL", config, second, containerid="c2")
    assert left(machine) == NOTHING


# --- CHECK ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("keys", [{}, {"ipMasq": True}, {"ipMasq": True, "mtu": 1400}])
def test_check_passes(machine: Machine, version: str, keys: Json) -> None:
    """A fresh attachment passes."""
    config = network(machine, cniVersion=version, **keys)
    container, result = attached(machine, config)

    machine.ok("ptp", "CHECK", {**config, "prevResult": result}, container)


@pytest.mark.parametrize(
    ("where", "line", "says"),
    [
        ("container", "ip addr del 10.9.0.2/24 dev eth0", "10.9.0.2/24"),
        ("container", "ip route del default", "0.0.0.0/0"),
        ("container", "ip route replace blackhole 10.9.0.1", "gateway 10.9.0.1"),
        ("container", "ip link set eth0 down", "down"),
        ("container", "ip link set eth0 mtu 1300", "MTU"),
        ("host", "ip addr del 10.9.0.1/32 dev VETH", "gateway 10.9.0.1"),
        ("host", "ip addr del fd00:9::1/128 dev VETH", "gateway fd00:9::1"),
        ("host", "ip route del 10.9.0.2", "route to 10.9.0.2"),
        ("host", "ip -6 route del fd00:9::2", "route to fd00:9::2"),
        ("host", "ip rule add to 10.9.0.2 blackhole", "route to 10.9.0.2"),
        ("host", "ip link set VETH down", "down"),
        ("host", "sysctl -qw net.ipv4.ip_forward=0", "forwards IPv4"),
        ("host", "nft delete table inet pycni", "masquerade"),
    ],
)
def test_check_tells(machine: Machine, where: str, line: str, says: str) -> None:
    """Each difference from the result of ADD is named."""
    config = network(machine, ipMasq=True)
    container, result = attached(machine, config)
    netns = machine.host if where == "host" else container

    machine.do(netns, line.replace("VETH", result["interfaces"][0]["name"]))

    error = machine.refused("ptp", "CHECK", {**config, "prevResult": result}, container)
    assert says in error["msg"], error


@pytest.mark.both_edges
def test_check_without_result(machine: Machine) -> None:
    """CHECK needs the result of ADD."""
    config = network(machine)
    container, _ = attached(machine, config)

    assert machine.refused("ptp", "CHECK", config, container)["code"] == 7


# --- DEL, GC, STATUS -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="same"),
        pytest.param({"ipMasq": False}, id="ipMasq-off"),
        pytest.param({"ipam": None}, id="no-ipam"),
        pytest.param({"ipam": {"type": "absent"}}, id="other-ipam"),
        pytest.param({"mtu": "many", "ipam": 5}, id="invalid"),
        pytest.param({"prevResult": {"ips": [{"address": "x"}]}}, id="bad-prevResult"),
    ],
)
@pytest.mark.parametrize("namespace", ["there", "gone", "unknown"])
def test_delete(machine: Machine, change: Json, namespace: str) -> None:
    """DEL is complete with a changed configuration and without namespace, and repeatable."""
    config = network(machine, ipMasq=True)
    container, _ = attached(machine, config)
    netns = container if namespace == "there" else ""
    if namespace == "gone":
        machine.forget(container)

    machine.ok("ptp", "DEL", {**config, **change}, netns)
    machine.ok("ptp", "DEL", config, netns)

    assert left(machine) == NOTHING


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_delete_of_the_reference(machine: Machine, backend: str) -> None:
    """An attachment of the Go plugin is removed completely, and the other way round."""
    config = network(machine, IPV4, ipMasq=True, ipMasqBackend=backend)
    path = f"{REFERENCE_BIN}"
    container = machine.container()
    result = machine.reference("ptp", "ADD", config, container, path=path)

    machine.ok("ptp", "DEL", {**config, "prevResult": result}, container)

    assert machine.ports() == []
    assert machine.leases() == []
    assert [e for e in machine.nft() if "rule" in e and "10.9.0.2" in json.dumps(e)] == []
    machine.ok("ptp", "ADD", config, container)
    machine.reference("ptp", "DEL", config, container, path=path)
    assert (machine.ports(), machine.leases()) == ([], [])


def test_delete_leaves_others_alone(machine: Machine) -> None:
    """A DEL without record spares what is in a bridge, or of another container."""
    config = network(machine)
    container = machine.container()
    machine.ok("bridge", "ADD", machine.network(), container)
    before = machine.snapshot(container)

    machine.ok("ptp", "DEL", {**config, "name": f"{machine.name}-2"}, container)
    machine.ok("ptp", "DEL", {**config, "name": f"{machine.name}-2"}, "/no/such/netns")

    after = machine.snapshot(container)
    for netns in (machine.host, container):
        assert changes(before[netns], after[netns]) == []

    second, _ = attached(machine, config, "c2")
    machine.ok("ptp", "DEL", config, second, containerid="c3")
    assert machine.link(second, "eth0") is not None


def age(machine: Machine) -> None:
    """Make all records and leases older than GC's grace time."""
    leases = [Path(machine.data_dir, machine.name, address) for address in machine.leases()]
    for path in (*map(Path, files_below(machine.state_dir)), *leases):
        os.utime(path, (path.stat().st_mtime - GRACE_SECONDS - 60,) * 2)


@pytest.mark.both_edges
def test_gc(machine: Machine) -> None:
    """GC removes what is not listed and dead, with its address; it spares the listed and living."""
    config = network(machine, "10.119.7.0/24", ipMasq=True)
    dead, _ = attached(machine, config, "dead")
    attached(machine, config, "listed")
    living, result = attached(machine, config, "living")
    with machine.process_in(living):
        machine.end(dead)
        age(machine)
        names = [{"containerID": "listed", "ifname": "eth0"}]
        machine.ok("ptp", "GC", {**config, KEY: names})

    assert machine.leases() == ["10.119.7.3", "10.119.7.4"]
    assert len(machine.ports()) == 2
    assert set(machine.masqueraded()) == {"10.119.7.3", "10.119.7.4"}
    assert machine.ping(machine.host, addresses_of(result)[0])


@pytest.mark.both_edges
def test_status(machine: Machine) -> None:
    """STATUS is silent where an ADD would work, and says why where it would not."""
    machine.ok("ptp", "STATUS", network(machine, ipMasq=True))
    small = network(machine)
    small["ipam"]["ranges"] = [[{"subnet": IPV4, "rangeStart": "10.9.0.2", "rangeEnd": "10.9.0.2"}]]
    attached(machine, small)

    assert machine.refused("ptp", "STATUS", small)["code"] == 50
    assert machine.refused("ptp", "STATUS", network(machine, ipam={}))["code"] == 7
    assert machine.refused("ptp", "STATUS", network(machine, ipam={"type": "absent"}))["code"] == 50


@pytest.mark.timeout(300)
def test_storm(machine: Machine) -> None:
    """Twelve containers that come and go at once get addresses of their own, and leave nothing."""
    config = network(machine, ipMasq=True)

    def rounds(number: int) -> list[str]:
        container, seen = machine.container(), []
        for _ in range(3):
            result = machine.ok("ptp", "ADD", config, container, containerid=f"c{number}")
            seen += addresses_of(result)
            machine.ok(
                *("ptp", "CHECK", {**config, "prevResult": result}, container),
                containerid=f"c{number}",
            )
            machine.ok("ptp", "DEL", config, container, containerid=f"c{number}")
        return seen

    with ThreadPoolExecutor(12) as pool:
        seen = list(pool.map(rounds, range(12)))

    assert [len(one) for one in seen] == [6] * 12
    assert left(machine) == NOTHING
