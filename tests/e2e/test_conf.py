"""Every example of conf/, loaded from there by cnitool, does what conf/README.md says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import pytest

from tests import dhcp
from tests.e2e.node import NODE4, NODE6, OUTSIDE4, OUTSIDE6, Node, addresses_in
from tests.machine import DIST, ROOT, Json
from tests.sockets import asks, serving
from tests.waits import wait_until

pytestmark = pytest.mark.both_edges
CONF = ROOT / "conf"
# These need more of a kernel than this one may have: tests/vm executes them, where each takes long.
EMULATED = [pytest.mark.full_kernel, pytest.mark.rotating(2)]


def marks(example: Path) -> list[pytest.MarkDecorator]:
    """Return the marks of the test of an example."""
    if not re.search(r"\bvlan|ipvlan|dummy|vrf", example.name):
        return []
    uses_nftables = '"ipMasq": true' in example.read_text()
    return EMULATED + [pytest.mark.emulated_machine] * uses_nftables


EXAMPLES = [
    pytest.param(path, id=path.name, marks=marks(path))
    for path in sorted(CONF.iterdir())
    if path.suffix in (".conf", ".conflist")
]
# What is in cni-plugins-linux-amd64-v1.9.1.tgz, less README.md and LICENSE.
RELEASE = {
    *("bandwidth", "bridge", "dhcp", "dummy", "firewall", "host-device", "host-local", "ipvlan"),
    *("loopback", "macvlan", "portmap", "ptp", "sbr", "static", "tap", "tuning", "vlan", "vrf"),
}
ALONE = frozenset({"host-device", "vlan-interface"})  # networks with room for one container
OWN_VLAN = frozenset({"PVID", "Egress Untagged"})  # of frames without a tag
TAGGED: frozenset[str] = frozenset()
CAP_ARGS: dict[str, Json] = {
    "capabilities": {"mac": "02:00:00:00:27:07", "ips": ["10.27.0.7"]},
    "tap": {"mac": "02:00:00:00:49:07"},
    **{
        name: {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
        for name in ("portmap", "portmap-iptables", "portmap-conditions", "podman-like")
    },
    "bandwidth": {"bandwidth": {"ingressRate": 10_000_000, "egressRate": 20_000_000}},
    "static": {"ips": ["10.29.0.7/24"]},
    "runtime-ranges": {"ipRanges": [[{"subnet": "10.28.0.0/24"}]]},
}

SECOND_CAP_ARGS: dict[str, Json] = {
    "capabilities": {"mac": "02:00:00:00:27:08", "ips": ["10.27.0.8"]},
    "static": {"ips": ["10.29.0.8/24"]},
}


class Example:
    """A network with two containers on it, or with one."""

    def __init__(self, node: Node, path: Path) -> None:
        config = json.loads(path.read_text())
        self.node = node
        self.name: str = config["name"]
        self.sysctls: Json = config.get("plugins", [{}])[-1].get("sysctl", {})
        self.plugin: Json = config["plugins"][0] if "plugins" in config else config
        self.newest: str = max([config["cniVersion"], *config.get("cniVersions", ())])
        names = ("c1",) if self.name in ALONE else ("c1", "c2")
        self.containers = [node.container(name) for name in names]
        self.results: list[Json] = []

    def call(self, command: str, netns: str, *, number: int = 0) -> Json:
        """Run cnitool on conf/ itself, which must succeed."""
        wishes = dict(CAP_ARGS.get(self.name, {}))
        if number and "portMappings" in wishes:
            wishes = {}
        if number and "ips" in wishes:
            wishes = SECOND_CAP_ARGS[self.name]
        environ = {"NETCONFPATH": str(CONF)} | ({"CAP_ARGS": json.dumps(wishes)} if wishes else {})
        return self.node.ok(command, self.name, netns, **environ)

    @property
    def addresses(self) -> list[list[str]]:
        """The addresses of each container."""
        return [addresses_in(result) for result in self.results]

    def eth0(self) -> Json:
        """Return the first container's interface."""
        link = self.node.link(self.containers[0], "eth0")
        assert link is not None
        return link

    def port(self) -> Json:
        """Return the host's end of the first container's interface."""
        link = self.node.link("", self.results[0]["interfaces"][1]["name"])
        assert link is not None
        return link

    def flags(self) -> Json:
        """Return what the bridge knows of that port."""
        flags: Json = self.port()["linkinfo"]["info_slave_data"]
        return flags

    def shared(self) -> list[str]:
        """Return the interfaces that outlive the containers."""
        bridge = self.plugin.get("bridge", "")
        gateway = self.node.link("", f"{bridge}.{self.plugin.get('vlan')}")
        return [bridge, *([gateway["ifname"], gateway["link"]] if gateway else [])]

    def port_vlans(self) -> list[list[tuple[int, frozenset[str]]]]:
        """Return the VLANs and flags of each container's port."""
        return [self.node.vlans(result["interfaces"][1]["name"]) for result in self.results]

    def routes(self, *words: str) -> list[Json]:
        """Return routes of the first container."""
        return self.node.ip(self.containers[0], "route", "show", *words)


def reaches_world(example: Example) -> None:
    """The containers reach each other, the gateways and the world."""
    first = example.containers[0]
    for address in example.addresses[1]:
        assert example.node.reaches(first, address)
    for ip in example.results[0]["ips"]:
        assert example.node.reaches(first, ip["gateway"])
        assert example.node.reaches(first, OUTSIDE6 if ":" in ip["gateway"] else OUTSIDE4)


def mynet(example: Example) -> None:
    """There is masquerading but no default route."""
    first = example.containers[0]
    assert example.node.reaches(first, example.addresses[1][0])
    assert example.routes("default") == []
    example.node.command("ip", "route", "add", "default", "via", "10.244.0.1", netns=first)
    assert example.node.reaches(first, OUTSIDE4)


def dhcp_dual_stack(example: Example) -> None:
    """IPv4 by the routes of DHCP, IPv6 by those that the router advertises."""
    first = example.containers[0]
    for address in (*example.addresses[1], OUTSIDE4, OUTSIDE6):
        wait_until(partial(example.node.reaches, first, address), f"{address} is not reached")


def several_ranges(example: Example) -> None:
    """One address of the pool and one of the second subnet; both gateways answer."""
    reaches_world(example)
    assert example.addresses == [["10.23.0.10", "172.23.0.2"], ["10.23.0.11", "172.23.0.3"]]


def internal(example: Example) -> None:
    """The other container and the node answer, the world has no route."""
    first = example.containers[0]
    assert example.node.reaches(first, "10.25.0.1")
    assert example.node.reaches(first, example.addresses[1][0])
    assert example.routes("default") == []
    example.node.command("ip", "route", "add", "default", "via", "10.25.0.1", netns=first)
    assert example.node.is_cut_off(first, OUTSIDE4)


def layer2(example: Example) -> None:
    """Frames pass between addresses that the containers give themselves."""
    for number, netns in enumerate(example.containers, 1):
        assert example.node.addresses(netns, "eth0") == []
        example.node.command(
            "ip", "addr", "add", f"10.26.0.{number}/24", "dev", "eth0", netns=netns
        )
    assert example.node.reaches(example.containers[0], "10.26.0.2")


def capabilities(example: Example) -> None:
    """Each container has the MAC and the address that were asked for."""
    reaches_world(example)
    assert example.addresses == [["10.27.0.7"], ["10.27.0.8"]]
    assert example.eth0()["address"] == "02:00:00:00:27:07"


def runtime_ranges(example: Example) -> None:
    """The addresses are of the range that the runtime gave."""
    reaches_world(example)
    assert example.addresses == [["10.28.0.2"], ["10.28.0.3"]]


def static(example: Example) -> None:
    """Each container has the address that was named."""
    reaches_world(example)
    assert example.addresses == [["10.29.0.7"], ["10.29.0.8"]]


def hairpin(example: Example) -> None:
    """The port reflects frames."""
    reaches_world(example)
    assert example.flags()["hairpin"] is True


def port_isolation(example: Example) -> None:
    """The world answers, the neighbour does not."""
    first = example.containers[0]
    assert example.node.reaches(first, OUTSIDE4)
    assert example.node.is_cut_off(first, example.addresses[1][0])
    assert example.flags()["isolated"] is True


def macspoofchk(example: Example) -> None:
    """With another MAC the container is mute."""
    reaches_world(example)
    first = example.containers[0]
    example.node.command("ip", "link", "set", "eth0", "address", "02:00:00:00:00:66", netns=first)
    assert example.node.is_cut_off(first, "10.32.0.1")
    mac = example.results[0]["interfaces"][2]["mac"]
    example.node.command("ip", "link", "set", "eth0", "address", mac, netns=first)


def mtu(example: Example) -> None:
    """Both ends and the bridge have 1400 bytes."""
    reaches_world(example)
    bridge = example.node.link("", "cni33")
    assert bridge is not None
    assert (example.eth0()["mtu"], example.port()["mtu"], bridge["mtu"]) == (1400, 1400, 1400)


def routes(example: Example) -> None:
    """Every route is there with all that was asked for."""
    reaches_world(example)
    (default,) = example.routes("default")
    assert (default["gateway"], default["metric"]) == ("10.34.0.1", 500)
    assert default["metrics"] == [{"mtu": 1300, "advmss": 1260}]
    assert [route["gateway"] for route in example.routes("192.168.34.0/24")] == ["10.34.0.254"]
    assert [r["gateway"] for r in example.routes("table", "100")] == ["10.34.0.1"]
    (on_link,) = example.routes("192.168.36.0/24")
    assert on_link["scope"] == "link"
    assert "gateway" not in on_link


def iptables(example: Example) -> None:
    """The masquerading is to be found in iptables and ip6tables."""
    reaches_world(example)
    for command in ("iptables-save", "ip6tables-save"):
        assert "-j MASQUERADE" in example.node.command(command)
    tables = example.node.command("nft", "list", "tables").splitlines()
    assert "table inet pycni" not in tables


def dns(example: Example) -> None:
    """The result says what the file says."""
    reaches_world(example)
    assert example.results[0]["dns"] == example.plugin["dns"]


def promiscuous(example: Example) -> None:
    """The bridge is promiscuous."""
    reaches_world(example)
    bridge = example.node.link("", "cni37")
    assert bridge is not None
    assert "PROMISC" in bridge["flags"]


def dad(example: Example) -> None:
    """Detection has run in the container, and is over."""
    reaches_world(example)
    (link,) = example.node.ip(example.containers[0], "-6", "addr", "show", "dev", "eth0")
    (info,) = (info for info in link["addr_info"] if info["scope"] == "global")
    assert not info.get("tentative")
    assert not info.get("nodad")


def answers(example: Example, netns: str, address: str) -> bool:
    """Tell whether the first container answers at port 8080 of an address."""
    node = example.node
    with serving(node.netns(example.containers[0]), "tcp", 80) as (v4, v6):
        server = v6 if ":" in address else v4
        return bool(asks(node.netns(netns), server, address, 8080))


def portmap(example: Example) -> None:
    """The first container is reached from outside, the node, itself and its neighbour."""
    reaches_world(example)
    for netns in ("/run/netns/outside", "", *example.containers):
        assert answers(example, netns, NODE4)
    assert answers(example, "", "127.0.0.1")
    if len(example.results[0]["ips"]) > 1:
        assert answers(example, "/run/netns/outside", NODE6)


def portmap_iptables(example: Example) -> None:
    """The same, and the rules are to be found in iptables."""
    portmap(example)
    assert "CNI-HOSTPORT-DNAT" in example.node.command("iptables-save")


def portmap_conditions(example: Example) -> None:
    """The world reaches the container, and keeps its address; the neighbour does not."""
    assert answers(example, "/run/netns/outside", NODE4)
    assert not answers(example, example.containers[1], NODE4)


def vlan(example: Example) -> None:
    """Both ports are in VLAN 100 and in no other, and so is the gateway."""
    assert example.port_vlans() == [[(100, OWN_VLAN)]] * 2
    assert example.node.addresses("", "cni40.100") == ["10.40.0.1/24"]
    assert example.node.addresses("", "cni40") == []
    # Otherwise netfilter sees every packet twice, first as a bridged frame, and drops those that
    # it is to masquerade: the bridge has no address.
    example.node.command("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
    reaches_world(example)


def vlan_trunk(example: Example) -> None:
    """Frames with the tags of the trunk pass between the containers, others do not."""
    trunk = [(vid, TAGGED) for vid in (101, *range(200, 300))]
    assert example.port_vlans() == [[(1, OWN_VLAN), *trunk]] * 2
    for number, netns in enumerate(example.containers, 1):
        script = f"""
            for vid in 101 102 250; do
                ip link add link eth0 name eth0.$vid type vlan id $vid
                ip address add 10.41.$vid.{number}/24 dev eth0.$vid
                ip link set eth0.$vid up
            done
            """
        example.node.command("sh", "-ec", script, netns=netns)
    first = example.containers[0]
    assert example.node.reaches(first, "10.41.101.2")
    assert example.node.reaches(first, "10.41.250.2")
    assert example.node.is_cut_off(first, "10.41.102.2")


def ptp(example: Example) -> None:
    """The pair has 1400 bytes, and all, the neighbour too, is reached over the gateway."""
    reaches_world(example)
    assert example.eth0()["mtu"] == 1400
    assert {r.get("gateway") for r in example.routes("10.50.0.0/24")} == {"10.50.0.1"}
    assert example.node.reaches("", example.addresses[0][0])


def dummy(example: Example) -> None:
    """The container has the address for itself; nothing leads out of it."""
    first, second = example.containers
    example.node.command("ip", "link", "set", "lo", "up", netns=first)  # packets to itself go there
    assert example.node.reaches(first, example.addresses[0][0])
    assert example.node.is_cut_off(second, example.addresses[0][0])


def ipvlan(example: Example) -> None:
    """All have the uplink's MAC, and reach each other and the world over a gateway outside."""
    words = ("ip", "address", "add", "10.53.0.1/24", "dev", "ext0")
    example.node.command(*words, netns="/run/netns/outside")
    uplink = example.node.link("", "up0")
    assert uplink is not None
    assert example.eth0()["address"] == uplink["address"]
    reaches_world(example)


def vlan_interface(example: Example) -> None:
    """The container reaches its gateway, which is outside, in the VLAN."""
    script = """
        ip link add link ext0 name ext0.59 type vlan id 59
        ip address add 10.59.0.1/24 dev ext0.59
        ip link set ext0.59 up
        """
    example.node.command("sh", "-ec", script, netns="/run/netns/outside")
    assert example.eth0()["linkinfo"]["info_data"]["id"] == 59
    assert example.node.reaches(example.containers[0], "10.59.0.1")


def host_device(example: Example) -> None:
    """The container is in the node's place outside; the node is cut off until DEL."""
    first = example.containers[0]
    assert example.node.reaches(first, OUTSIDE4)
    assert "up0" not in example.node.links("")


def tap(example: Example) -> None:
    """The tap is for user and group of qemu, with several queues."""
    data = example.eth0()["linkinfo"]["info_data"]
    assert (data["type"], data["multi_queue"], data["persist"]) == ("tap", True, True)
    assert (data["user"], data["group"]) in ((107, 107), ("107", "107"))
    assert example.eth0()["address"] == "02:00:00:00:49:07"


def ptp_routed(example: Example) -> None:
    """The world sees the containers' own addresses, and needs routes to them."""
    first, outside = example.containers[0], "/run/netns/outside"
    assert example.node.reaches(first, example.addresses[1][0])
    assert example.node.is_cut_off(first, OUTSIDE4)
    example.node.command("ip", "route", "add", "10.51.0.0/24", "via", NODE4, netns=outside)
    assert example.node.reaches(first, OUTSIDE4)
    assert example.node.reaches(outside, example.addresses[0][0])


def tuned(example: Example) -> None:
    """Inside the container every sysctl is what the profile says, and on the node as it was."""
    reaches_world(example)
    assert len(example.sysctls) > 3
    for key, value in example.sysctls.items():
        path = f"/proc/sys/{key.replace('.', '/')}"
        inside = example.node.command("cat", path, netns=example.containers[0])
        assert inside.split() == value.split(), key
    words = [f"/proc/sys/{key.replace('.', '/')}" for key in example.sysctls]
    assert example.node.command("cat", *words) != example.node.command(
        "cat", *words, netns=example.containers[0]
    )


def bandwidth(example: Example) -> None:
    """Every container has the limits that the runtime has wished for."""
    reaches_world(example)
    for result in example.results:
        veth, ifb = result["interfaces"][1]["name"], result["interfaces"][3]["name"]
        for name, rate in ((veth, "10Mbit"), (ifb, "20Mbit")):
            assert f"rate {rate} " in example.node.command("tc", "qdisc", "show", "dev", name)
        redirected = example.node.command("tc", "filter", "show", "dev", veth, "ingress")
        assert f"Redirect to device {ifb}" in redirected


def bandwidth_subnets(example: Example) -> None:
    """There is a limit, and a filter for each subnet that it is not for."""
    reaches_world(example)
    interfaces = [entry["name"] for entry in example.results[0]["interfaces"]]
    for name, rate in ((interfaces[0], "100Mbit"), (interfaces[2], "50Mbit")):
        classes = example.node.command("tc", "class", "show", "dev", name)
        assert f"rate {rate} ceil {rate} " in classes
        filters = example.node.command("tc", "filter", "show", "dev", name, "parent", "1:")
        assert filters.count("flowid 1:1 ") == 2


def sbr(example: Example) -> None:
    """Packets with the container's address as source reach the world, all others the subnet."""
    node, (first, _) = example.node, example.containers
    ((own,), (other,)) = example.addresses
    assert node.reaches(first, other)
    assert node.run("ping", "-c", "1", "-I", own, OUTSIDE4, netns=first).returncode == 0
    assert node.run("ping", "-c", "1", OUTSIDE4, netns=first).returncode != 0
    assert [route["prefsrc"] for route in example.routes()] == [own]


def vrf(example: Example) -> None:
    """The VRF finds the other container and the world, where the main table has nothing."""
    node, (first, _) = example.node, example.containers
    for address in (example.addresses[1][0], OUTSIDE4):
        assert node.run("ping", "-c", "1", "-I", "blue", address, netns=first).returncode == 0
    assert example.routes() == []
    assert node.link(first, "blue") is not None


def firewall(example: Example) -> None:
    """Where the node forwards nothing else, the containers reach each other and the world."""
    # A bridge hands its frames to netfilter on this node, as it does where docker runs.
    example.node.command("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
    example.node.command("iptables", "-P", "FORWARD", "DROP")
    reaches_world(example)


def firewall_isolated(example: Example) -> None:
    """The world answers, the neighbour does not."""
    first = example.containers[0]
    assert example.node.reaches(first, OUTSIDE4)
    assert example.node.is_cut_off(first, example.addresses[1][0])


def podman_like(example: Example) -> None:
    """Ports, rules and policy of one chain get along."""
    portmap(example)
    firewall(example)


def loopback(example: Example) -> None:
    """The container reaches itself."""
    assert example.node.reaches(example.containers[0], "127.0.0.1")
    assert example.node.reaches(example.containers[0], "::1")


# What an example shows beyond ADD, CHECK and DEL, by the name of its network.
# By the name of the network; an example that is not here shows `reaches_world`.
SHOWS: dict[str, Callable[[Example], None]] = {
    "mynet": mynet,
    "dhcp-dual-stack": dhcp_dual_stack,
    "several-ranges": several_ranges,
    "internal": internal,
    "layer2": layer2,
    "capabilities": capabilities,
    "runtime-ranges": runtime_ranges,
    "static": static,
    "hairpin": hairpin,
    "port-isolation": port_isolation,
    "macspoofchk": macspoofchk,
    "mtu": mtu,
    "routes": routes,
    "iptables": iptables,
    "dns": dns,
    "promiscuous": promiscuous,
    "dad": dad,
    "vlan": vlan,
    "vlan-trunk": vlan_trunk,
    "portmap": portmap,
    "portmap-iptables": portmap_iptables,
    "portmap-conditions": portmap_conditions,
    "firewall": firewall,
    "firewall-same-bridge": firewall,
    "firewall-isolated": firewall_isolated,
    "firewall-iptables": firewall,
    "podman-like": podman_like,
    "dummy": dummy,
    "ipvlan": ipvlan,
    "vlan-interface": vlan_interface,
    "host-device": host_device,
    "tap": tap,
    "ptp": ptp,
    "ptp-routed": ptp_routed,
    "tuning-throughput": tuned,
    "tuning-latency": tuned,
    "tuning-connections": tuned,
    "bandwidth": bandwidth,
    "bandwidth-subnets": bandwidth_subnets,
    "sbr": sbr,
    "vrf": vrf,
    "loopback": loopback,
}


@pytest.mark.parametrize("path", EXAMPLES)
def test_example(node: Node, path: Path, tmp_path: Path) -> None:
    """Its containers are added, checked, tried out and deleted, and nothing is left."""
    node.outside()
    example = Example(node, path)
    with surroundings_of(example, tmp_path):
        if example.newest == "1.1.0" and example.name != "runtime-ranges":  # it has its own test
            example.call("status", example.containers[0])

        for number, netns in enumerate(example.containers):
            example.results.append(example.call("add", netns, number=number))
        SHOWS.get(example.name, reaches_world)(example)

        shared = example.shared()
        assert example.results[0]["cniVersion"] == example.newest
        for number, netns in enumerate(example.containers):
            example.call("check", netns, number=number)
            example.call("del", netns, number=number)
            example.call("del", netns, number=number)
            assert node.links(netns) == ["lo"]
        assert node.traces(*shared) == {}
        assert node.reaches("", OUTSIDE4)


def surroundings_of(example: Example, tmp: Path) -> AbstractContextManager[None]:
    """Return what the world has for an example."""
    is_dhcp = example.plugin.get("ipam", {}).get("type") == "dhcp"
    has_ipv6 = example.name == "dhcp-dual-stack"
    return dhcp.served(example.node, tmp, has_ipv6=has_ipv6) if is_dhcp else nullcontext()


def test_what_is_shown_has_an_example() -> None:
    """No name in the tables is without its file, for which the ordinary check would be enough."""
    names = {json.loads(path.read_text())["name"] for path in CONF.glob("*.conf*")}

    assert {*SHOWS, *CAP_ARGS, *SECOND_CAP_ARGS} - names == set()


def test_the_release_of_the_reference_can_be_replaced() -> None:
    """Each of its executables has one of ours, and an example, which the test above runs."""
    made = {path.name for path in DIST.iterdir() if path.is_file()}
    assert made - {"pycni"} == RELEASE

    used = set()
    for path in CONF.glob("*.conf*"):
        config = json.loads(path.read_text())
        for plugin in config.get("plugins", [config]):
            used |= {plugin["type"], plugin.get("ipam", {}).get("type")} - {None}
    assert used == RELEASE


def test_status_before_the_runtime_gives_ranges(node: Node) -> None:
    """STATUS brings no runtimeConfig: a network whose ranges come from there is not unhealthy."""
    example = Example(node, CONF / "28-runtime-ranges.conflist")

    example.call("status", example.containers[0])
