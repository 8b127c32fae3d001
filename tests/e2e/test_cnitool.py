"""cnitool drives the executables: each version and address family, from ADD to the last DEL."""

from __future__ import annotations

import json
import os

import pytest

from tests.e2e.node import (
    OUTSIDE4,
    OUTSIDE6,
    Node,
    addresses_in,
    network,
    pid_path,
    single,
)
from tests.machine import Json

pytestmark = pytest.mark.both_edges
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NET4, NET6 = "10.81.0.0/24", "fd00:81::/64"
FAMILIES = {"ipv4": [NET4], "ipv6": [NET6], "dual": [NET4, NET6]}
OTHER = {
    "ipv4": ["10.82.0.0/24"],
    "ipv6": ["fd00:82::/64"],
    "dual": ["10.82.0.0/24", "fd00:82::/64"],
}
# Address family: gateway, first address of a container, host outside, default route.
FACTS = {
    NET4: ("10.81.0.1", "10.81.0.2", OUTSIDE4, "0.0.0.0/0"),
    NET6: ("fd00:81::1", "fd00:81::2", OUTSIDE6, "::/0"),
}
OWN_LINKS = ("up0", "br0")


def leases(node: Node, name: str = "net1") -> dict[str, str]:
    """Return the leases of a network: address to owner."""
    prefix = f"/var/lib/cni/networks/{name}/"
    return {
        path.removeprefix(prefix): content
        for path, content in node.files().items()
        if path.startswith(prefix) and path.removeprefix(prefix)[:4] not in ("lock", "last")
    }


def records(node: Node) -> list[Json]:
    """Return the attachment records."""
    found = [text for path, text in node.files().items() if path.startswith("/run/pycni/")]
    return [json.loads(text.splitlines()[0]) for text in found]


def masqueraded(node: Node, addresses: list[str]) -> list[str]:
    """Return those of the addresses that the firewall names."""
    rules = "\n".join(node.firewall())
    return [address for address in addresses if f'"{address}"' in rules]


@pytest.mark.rotating(2)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_traffic(node: Node, version: str, family: str) -> None:
    """Two containers reach each other, their gateway and, masqueraded, a host without a route."""
    subnets = FAMILIES[family]
    node.outside()
    first, second = node.container("c1"), node.container("c2")
    node.configure(network(version, subnets))

    result = node.ok("add", "net1", first)
    other = node.ok("add", "net1", second)

    assert result["cniVersion"] == version
    assert addresses_in(result) == [FACTS[subnet][1] for subnet in subnets]
    for subnet, peer in zip(subnets, addresses_in(other), strict=True):
        gateway, own, outside, _ = FACTS[subnet]
        assert node.reaches("", own), "node to container"
        assert node.reaches(first, gateway), "container to gateway"
        assert node.reaches(first, peer), "container to container"
        assert node.reaches(second, own), "container to container"
        assert node.reaches(first, outside), "container to the world, which has no way back"


@pytest.mark.rotating(2)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_del_leaves_nothing(node: Node, version: str, family: str) -> None:
    """After DEL, and DEL again, the bridge and the cursors alone are left."""
    container = node.container()
    node.configure(network(version, FAMILIES[family]))
    node.ok("add", "net1", container)
    assert set(node.traces("br0")) == {"links", "firewall", "files"}

    node.ok("del", "net1", container)
    node.ok("del", "net1", container)

    assert node.traces("br0") == {}
    assert node.links(container) == ["lo"]


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_check_notices_and_is_content_again(node: Node, version: str, family: str) -> None:
    """CHECK passes after ADD, fails for a lost address or gateway, passes when repaired."""
    subnets = FAMILIES[family]
    gateway, address, _, default = FACTS[subnets[-1]]
    prefix = subnets[-1].partition("/")[2]
    container = node.container()
    node.configure(network(version, subnets))
    node.ok("add", "net1", container)
    node.ok("check", "net1", container)

    node.command("ip", "addr", "del", f"{address}/{prefix}", "dev", "eth0", netns=container)
    lost_address = node.refused("check", "net1", container)
    node.command("ip", "addr", "add", f"{address}/{prefix}", "dev", "eth0", netns=container)
    node.command("ip", "route", "replace", default, "via", gateway, netns=container)
    node.ok("check", "net1", container)
    node.command("ip", "addr", "del", f"{gateway}/{prefix}", "dev", "br0")
    lost_gateway = node.refused("check", "net1", container)
    node.command("ip", "addr", "add", f"{gateway}/{prefix}", "dev", "br0")

    assert address in lost_address
    assert gateway in lost_gateway
    node.ok("check", "net1", container)


@pytest.mark.rotating(2)
@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_check_is_of_later_versions(node: Node, version: str, family: str) -> None:
    """cnitool refuses CHECK before 0.4.0, and so does the plugin itself, with code 1."""
    container = node.container()
    config = network(version, FAMILIES[family])
    node.configure(config)
    node.ok("add", "net1", container)

    done = node.execute("bridge", "CHECK", single(config), container)

    assert "does not support the CHECK command" in node.refused("check", "net1", container)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_status(node: Node, family: str) -> None:
    """STATUS is silent while ADD would work, and says what keeps it from working."""
    full = network("1.1.0", OTHER[family], name="net2", bridge="br2")
    (scarce,) = full["plugins"][0]["ipam"]["ranges"][-1]
    last = scarce["subnet"].replace("/64", "9").replace("0/24", "9")
    scarce.update(rangeStart=last, rangeEnd=last)
    node.configure(network("1.1.0", FAMILIES[family]), full)
    container = node.container()
    node.ok("status", "net2", container)
    node.ok("add", "net2", container)

    node.ok("status", "net1", container)
    complaint = node.refused("status", "net2", container)

    assert "no IP addresses available" in complaint
    assert last in complaint
    node.ok("del", "net2", container)
    node.ok("status", "net2", container)


@pytest.mark.parametrize("family", FAMILIES)
def test_gc_deletes_what_cnitool_knows(node: Node, family: str) -> None:
    """cnitool gc takes every attachment of the network for stale, and no other network's."""
    other = network("1.1.0", OTHER[family], name="net2", bridge="br2")
    node.configure(network("1.1.0", FAMILIES[family]), other)
    first, second = node.container("c1"), node.container("c2")
    for container in (first, second):
        node.ok("add", "net1", container)
    kept = node.ok("add", "net2", first, CNI_IFNAME="net2")

    node.ok("gc", "net1", first)

    assert node.links(second) == ["lo"]
    assert node.links(first) == ["lo", "net2"]
    assert leases(node) == {}
    assert list(leases(node, "net2")) == addresses_in(kept)
    assert [record["network"] for record in records(node)] == ["net2", "net2"]
    node.ok("check", "net2", first, CNI_IFNAME="net2")
    node.ok("status", "net1", first)


@pytest.mark.parametrize("family", FAMILIES)
def test_gc_without_a_list_removes_the_dead(node: Node, family: str) -> None:
    """Attachments that cnitool has forgotten go by GC once their namespaces are gone."""
    node.configure(network("1.1.0", FAMILIES[family]))
    living, dead = node.container("c1"), node.container("c2")
    kept = addresses_in(node.ok("add", "net1", living))
    gone = addresses_in(node.ok("add", "net1", dead))
    assert masqueraded(node, gone) == gone
    node.delete_container("c2")  # a veth pair that is still there leads to a living namespace
    for path in node.path("/var/lib/cni/results").iterdir():
        path.unlink()  # or cnitool would DEL both
    for state in ("/run/pycni/attachments", "/var/lib/cni/networks/net1"):
        for path in node.path(state).iterdir():
            os.utime(path, (0, 0))  # beyond the time that an ADD may take

    node.ok("gc", "net1", living)

    assert list(leases(node)) == kept
    assert len(records(node)) == 2
    assert masqueraded(node, [*kept, *gone]) == kept
    for subnet in FAMILIES[family]:
        assert node.reaches(living, FACTS[subnet][0])


def test_container_by_process_id_dies_before_del(node: Node) -> None:
    """DEL by /proc/PID/ns/net works when the process, and so the path, is gone."""
    pid = node.process()
    node.configure(network("1.1.0", [NET4, NET6]))
    result = node.ok("add", "net1", pid_path(pid))
    assert result["interfaces"][2]["sandbox"] == pid_path(pid)

    node.kill(pid)
    node.ok("del", "net1", pid_path(pid))
    node.ok("del", "net1", pid_path(pid))

    assert node.traces("br0") == {}


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_two_interfaces_on_one_network(node: Node, backend: str) -> None:
    """DEL of net1 leaves eth0's address, lease and masquerading as they were."""
    node.outside()
    container = node.container()
    node.configure(network("1.0.0", [NET4], ipMasqBackend=backend))
    kept = addresses_in(node.ok("add", "net1", container))
    node.command("ip", "route", "delete", "default", netns=container)
    node.ok("add", "net1", container, CNI_IFNAME="net1")
    assert len(leases(node)) == 2

    node.ok("del", "net1", container, CNI_IFNAME="net1")

    assert node.links(container) == ["lo", "eth0"]
    assert list(leases(node)) == kept
    node.command("ip", "route", "add", "default", "via", "10.81.0.1", netns=container)
    assert node.reaches(container, OUTSIDE4)
    node.ok("check", "net1", container)
    node.ok("del", "net1", container)
    assert node.traces(*OWN_LINKS) == {}


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_del_without_the_cache(node: Node, backend: str) -> None:
    """DEL with neither namespace nor cached result removes masquerading and lease."""
    container = node.container()
    node.configure(network("1.0.0", [NET4, NET6], ipMasqBackend=backend))
    node.ok("add", "net1", container)
    node.command("ip", "netns", "delete", "c1")
    for path in node.path("/var/lib/cni/results").iterdir():
        path.unlink()

    node.ok("del", "net1", container)

    assert node.traces("br0") == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_without_masquerading_there_is_no_way_back(node: Node, family: str) -> None:
    """The world does not answer a container whose own address it gets to see."""
    node.outside()
    container = node.container()
    node.configure(network("1.1.0", FAMILIES[family], ipMasq=False))

    node.ok("add", "net1", container)

    for subnet in FAMILIES[family]:
        gateway, _, outside, _ = FACTS[subnet]
        assert node.reaches(container, gateway)
        assert node.is_cut_off(container, outside)
    assert node.firewall() == []


@pytest.mark.parametrize("version", ["0.3.1", "1.1.0"])
def test_capabilities(node: Node, version: str) -> None:
    """CAP_ARGS choose MAC, address and range; DEL needs the same and leaves nothing."""
    container = node.container()
    capabilities = {"mac": True, "ips": True, "ipRanges": True}
    node.configure(network(version, [NET4], capabilities=capabilities))
    wishes = {
        "mac": "02:00:00:00:81:07",
        "ips": ["10.81.0.77/24", "10.83.0.99"],
        "ipRanges": [[{"subnet": "10.83.0.0/24", "rangeStart": "10.83.0.90"}]],
    }

    result = node.ok("add", "net1", container, CAP_ARGS=json.dumps(wishes))

    assert addresses_in(result) == ["10.83.0.99", "10.81.0.77"]
    assert node.addresses(container, "eth0") == ["10.83.0.99/24", "10.81.0.77/24"]
    link = node.link(container, "eth0")
    assert link is not None
    assert link["address"] == wishes["mac"] == result["interfaces"][2]["mac"]
    node.ok("del", "net1", container, CAP_ARGS=json.dumps(wishes))
    assert node.traces("br0") == {}


@pytest.mark.parametrize("prefix", ["", "IgnoreUnknown=1;K8S_POD_NAME=p1;"], ids=["bare", "k8s"])
def test_cni_args(node: Node, prefix: str) -> None:
    """CNI_ARGS choose MAC and address, with and without keys that are nobody's."""
    container = node.container()
    node.configure(network("1.0.0", [NET4]))

    result = node.ok(
        "add", "net1", container, CNI_ARGS=f"{prefix}MAC=02:00:00:00:81:08;IP=10.81.0.50"
    )

    assert addresses_in(result) == ["10.81.0.50"]
    assert result["interfaces"][2]["mac"] == "02:00:00:00:81:08"


def test_unknown_cni_args_are_refused(node: Node) -> None:
    """A key that nobody knows fails ADD, which leaves nothing, and does not fail DEL."""
    container = node.container()
    node.configure(network("1.0.0", [NET4]))

    complaint = node.refused("add", "net1", container, CNI_ARGS="COLOUR=red")
    node.ok("del", "net1", container, CNI_ARGS="COLOUR=red")

    assert "COLOUR" in complaint
    assert node.traces("br0") == {}


def test_failed_add_can_be_repeated(node: Node) -> None:
    """An ADD that is refused leaves the living attachment as it was, and the next one succeeds."""
    node.outside()
    container = node.container()
    node.configure(network("1.1.0", [NET4]))
    node.ok("add", "net1", container)
    before = node.files()

    complaint = node.refused("add", "net1", container)

    assert "eth0" in complaint
    assert node.files() == before
    assert node.reaches(container, OUTSIDE4)
    node.ok("del", "net1", container)
    node.ok("add", "net1", container)
    assert node.reaches(container, OUTSIDE4)


def test_files_lie_where_they_belong(node: Node) -> None:
    """Plugins keep leases below /var/lib/cni/networks and records below /run/pycni."""
    node.configure(network("1.1.0", [NET4]))

    node.ok("add", "net1", node.container())

    assert {path.rpartition("/")[0] for path in node.files()} == {
        "/run/pycni/attachments",
        "/var/lib/cni/networks/net1",
        "/var/lib/cni/results",
    }
