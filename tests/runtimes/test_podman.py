"""Podman with network_backend = "cni": its lists are bridge, portmap, firewall and tuning."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.e2e.node import NODE4, NODE6, OUTSIDE4, OUTSIDE6
from tests.machine import DIST
from tests.runtimes import image
from tests.runtimes.node import RuntimeNode, eventually
from tests.runtimes.podman import Podman
from tests.sockets import asks, serving

V4, V6 = "10.80.0.0/24", "fd00:80::/64"
OTHER = "10.81.0.0/24"
MAC = "02:00:00:00:00:77"
OUTSIDE = "/run/netns/outside"
PORTS = ("--publish=8080:80", "--publish=5353:80/udp")


@pytest.fixture
def podman(node: RuntimeNode) -> Podman:
    """Podman on a node with a host outside."""
    node.serve_outside()
    return Podman(node)


@contextmanager
def leaving_nothing(podman: Podman, *bridges: str) -> Iterator[None]:
    """Require that what is done meanwhile leaves nothing but these bridges of networks."""
    before = podman.node.state(*bridges)
    yield
    podman.node.assert_as_before(before, *bridges)


def address(podman: Podman, netns: str, ifname: str = "eth0", *, version: int = 4) -> str:
    """Return a container's address on the node."""
    texts = podman.node.addresses(netns, ifname)
    (found,) = (text for text in texts if (":" in text) == (version == 6))
    return found.partition("/")[0]


def seen(
    podman: Podman, server: str, host: str, port: int = 8080, *, client: str, protocol: str = "tcp"
) -> str:
    """Return whom a server on port 80 of a container sees when a client asks `host`, "" none.

    `server` and `client` are namespaces on the node, "" is the node's own.
    """
    node = podman.node
    addresses = ["::" if ":" in host else "0.0.0.0"]
    with serving(node.netns(server), protocol, 80, addresses) as (waiting,):
        # One that asks again is one connection to the kernel, and has to follow the port.
        source = (OUTSIDE4, 4444) if (client, protocol) == (OUTSIDE, "udp") else None
        return asks(node.netns(client), waiting, host, port, source=source)


def assert_published(podman: Podman, netns: str, ifname: str = "eth0") -> None:
    """See that a container's ports are open to all, and that others' addresses are kept."""
    own4, own6 = (address(podman, netns, ifname, version=version) for version in (4, 6))
    gateway4, gateway6 = f"{own4.rpartition('.')[0]}.1", f"{own6.rpartition(':')[0]}:1"
    assert seen(podman, netns, NODE4, client=OUTSIDE) == OUTSIDE4
    assert seen(podman, netns, NODE6, client=OUTSIDE) == OUTSIDE6
    assert seen(podman, netns, NODE4, client="") == NODE4
    assert seen(podman, netns, "127.0.0.1", client="") == gateway4
    # Packets of a container to itself by way of the node come from there.
    assert seen(podman, netns, NODE4, client=netns) == gateway4
    assert seen(podman, netns, NODE6, client=netns) == gateway6
    if podman.node.links(netns) == ["lo", ifname]:
        # With two networks a server that is bound to no address answers from the newer one's.
        assert seen(podman, netns, NODE4, 5353, client=OUTSIDE, protocol="udp") == OUTSIDE4
        assert seen(podman, netns, NODE4, 5353, client=netns, protocol="udp") == gateway4


def namespaces(podman: Podman) -> set[str]:
    """Return the named namespaces of the node."""
    return {f"/run/netns/{path.name}" for path in podman.node.path("/run/netns").iterdir()}


@pytest.mark.both_edges
def test_run(podman: Podman) -> None:
    """Containers reach each other and the world, as the node, where docker lets nothing pass."""
    node = podman.node
    for command in ("iptables", "ip6tables"):
        node.command(command, "-P", "FORWARD", "DROP")
    bridge = podman.network("n1", V4, V6)
    with leaving_nothing(podman, bridge):
        one, two = (podman.start(name, "--network=n1") for name in ("c1", "c2"))
        for version, outside, own in ((4, OUTSIDE4, NODE4), (6, f"[{OUTSIDE6}]", NODE6)):
            other = address(podman, two, version=version)
            client = address(podman, one, version=version)
            assert seen(podman, two, other, 80, client=one) == client
            assert node.get(f"{outside}/cgi-bin/who", one) == own
        printed = podman.ok("run", "--rm", "--network=n1", image.NAME, "ip", "address")
        assert "inet 10.80.0.4/24" in printed
        audit = node.run(DIST / "pycni", "audit", "--any-netns")
        assert (audit.returncode, audit.stderr) == (0, ""), audit.stdout

        podman.remove("c1")
        podman.ok("kill", "c2")
        eventually(lambda: two not in namespaces(podman), "conmon has podman clean up")
        podman.remove("c2")
    podman.ok("network", "rm", "n1")
    assert node.link("", bridge) is None


def test_published_ports(podman: Podman) -> None:
    """Ports are open to the outside, the node and the container itself, and closed afterwards."""
    bridge = podman.network("n1", V4, V6)
    with leaving_nothing(podman, bridge):
        netns = podman.start("c1", "--network=n1", *PORTS, f"--publish={NODE4}:8081:80")
        assert_published(podman, netns)
        assert seen(podman, netns, NODE4, 8081, client=OUTSIDE) == OUTSIDE4
        assert seen(podman, netns, NODE6, 8081, client=OUTSIDE) == ""

        podman.remove("c1")

        assert podman.node.get(f"{NODE4}:8080/hello", OUTSIDE) == ""


def test_published_ports_beside_docker(podman: Podman) -> None:
    """Where FORWARD drops, published ports are open once CNI-ADMIN accepts it."""
    accept = ("CNI-ADMIN", "-p", "tcp", "--dport", "80", "-j", "ACCEPT")
    bridge = podman.network("n1", V4)
    podman.node.command("iptables", "-P", "FORWARD", "DROP")
    with leaving_nothing(podman, bridge):
        netns = podman.start("c1", "--network=n1", *PORTS)
        assert seen(podman, netns, NODE4, client=OUTSIDE) == ""

        podman.node.command("iptables", "-A", *accept)

        assert seen(podman, netns, NODE4, client=OUTSIDE) == OUTSIDE4
        podman.node.command("iptables", "-D", *accept)
        podman.remove("c1")


def test_connect_and_disconnect(podman: Podman) -> None:
    """A container may come onto a network and leave one; its ports go along."""
    bridges = [podman.network("n1", V4, V6), podman.network("n2", OTHER, "fd00:81::/64")]
    with leaving_nothing(podman, *bridges):
        netns = podman.start("c1", "--network=n1", *PORTS)
        other = podman.start("c2", "--network=n2")
        podman.ok("network", "connect", "n2", "c1")
        own = address(podman, netns, "eth1")
        assert seen(podman, other, address(podman, other), 80, client=netns) == own
        assert_published(podman, netns)
        podman.ok("network", "disconnect", "n2", "c1")
        assert podman.node.links(netns) == ["lo", "eth0"]
        assert own not in "".join(podman.node.firewall())
        assert_published(podman, netns)

        podman.ok("network", "connect", "n2", "c1")
        podman.ok("network", "disconnect", "n1", "c1")
        assert_published(podman, netns, "eth1")

        podman.remove("c1", "c2")


def test_reload_after_a_flush(podman: Podman) -> None:
    """`network reload` brings back what a flushed ruleset has lost, with the same addresses."""
    node = podman.node
    bridge = podman.network("n1", V4, V6)
    with leaving_nothing(podman, bridge):
        netns = podman.start("c1", "--network=n1", *PORTS)
        before = node.addresses(netns, "eth0"), node.link(netns, "eth0")
        node.command("nft", "flush", "ruleset")
        assert seen(podman, netns, NODE4, client=OUTSIDE) == ""

        podman.ok("network", "reload", "--all")

        assert_published(podman, netns)
        link = node.link(netns, "eth0")
        assert link is not None
        assert before[1] is not None
        assert (node.addresses(netns, "eth0"), link["address"]) == (before[0], before[1]["address"])
        assert node.get(f"{OUTSIDE4}/cgi-bin/who", netns) == NODE4
        podman.remove("c1")


def test_chosen_addresses(podman: Podman) -> None:
    """A container has the addresses and the MAC that it wants, unless another has them."""
    node = podman.node
    bridge = podman.network("n1", V4, V6)
    with leaving_nothing(podman, bridge):
        wishes = (f"--mac-address={MAC}", "--ip=10.80.0.77", "--ip6=fd00:80::77")
        netns = podman.start("c1", "--network=n1", *wishes)
        for _ in range(2):
            link = node.link(netns, "eth0")
            assert link is not None
            assert link["address"] == MAC
            assert node.addresses(netns, "eth0") == ["10.80.0.77/24", "fd00:80::77/64"]
            podman.ok("restart", "--time=0", "c1")
            netns = podman.netns("c1")

        before = node.state(bridge)
        words = ("run", "--rm", "--network=n1", "--ip=10.80.0.77", image.NAME, "true")
        assert "10.80.0.77" in podman.refused(*words)
        node.assert_as_before(before, bridge)
        podman.remove("c1")


def test_options_of_networks(podman: Podman) -> None:
    """A network's MTU and range are those of its containers; internal ones reach nobody else."""
    node = podman.node
    wide = podman.network("n1", V4, mtu="1400")
    podman.ok("network", "create", "--subnet", OTHER, "--ip-range=10.81.0.128/25", "n2")
    podman.ok("network", "create", "--subnet=10.82.0.0/24", "--internal", "n3")
    bridges = [wide, "cni-podman2", "cni-podman3"]
    with leaving_nothing(podman, *bridges):
        netns = podman.start("c1", "--network=n1")
        link = node.link(netns, "eth0")
        assert link is not None
        assert link["mtu"] == 1400
        assert address(podman, podman.start("c2", "--network=n2")) == "10.81.0.129"
        one, two = (podman.start(name, "--network=n3") for name in ("c3", "c4"))
        assert seen(podman, two, address(podman, two), 80, client=one) == address(podman, one)
        assert node.ip(one, "route", "show", "default") == []

        podman.remove("c1", "c2", "c3", "c4")


def test_restart(podman: Podman) -> None:
    """A container has everything again after restart, or stop and start."""
    bridge = podman.network("n1", V4, V6)
    with leaving_nothing(podman, bridge):
        podman.start("c1", "--network=n1", *PORTS)

        podman.ok("restart", "--time=0", "c1")
        assert_published(podman, podman.netns("c1"))
        podman.ok("stop", "--time=0", "c1")
        assert podman.node.get(f"{NODE4}:8080/hello", OUTSIDE) == ""
        podman.ok("start", "c1")
        assert_published(podman, podman.netns("c1"))

        podman.remove("c1")


# What the machine forgets without power; leases stay, older than the boot.
POWER_LOSS = """
pkill -KILL -x conmon
pkill -KILL -x pause
umount /run/netns/netns-* /var/lib/containers/storage/vfs-containers/*/userdata/shm
rm -r /run/netns/netns-* /run/pycni/attachments /run/pycni/indexes
rm -r /run/containers /run/libpod /run/runc /dev/shm/libpod_lock
nft flush ruleset
ip link delete cni-podman1
find /var/lib/cni/networks -exec touch --date=2020-01-01 {} +
"""


def test_power_loss(podman: Podman) -> None:
    """After a power loss containers start again as they were, and nothing of before is left."""
    node = podman.node
    podman.network("n1", V4, V6)
    with leaving_nothing(podman, "cni-podman1"):
        podman.start("c1", "--network=n1", "--ip=10.80.0.77", *PORTS)
        before = node.addresses(podman.start("c2", "--network=n1"), "eth0")
        node.command("sh", "-ec", POWER_LOSS)
        eventually(lambda: node.links("") == ["lo", "up0"], "the kernel removes the pairs")

        podman.ok("start", "c1", "c2")

        netns = podman.netns("c1")
        assert address(podman, netns) == "10.80.0.77"
        assert_published(podman, netns)
        assert node.addresses(podman.netns("c2"), "eth0") == before
        podman.remove("c1", "c2")


def test_isolation(podman: Podman) -> None:
    """Networks with the option isolate do not reach each other, and reach all else."""
    node = podman.node
    bridges = [podman.network(f"n{number}", f"10.8{number}.0.0/24") for number in (0, 1)]
    bridges += [
        podman.network(f"i{number}", f"10.9{number}.0.0/24", isolate="true") for number in (0, 1)
    ]
    with leaving_nothing(podman, *bridges):
        netns = {name: podman.start(name, f"--network={name}") for name in ("n0", "n1", "i0", "i1")}
        twin = podman.start("twin", "--network=i0")
        hosts = {name: address(podman, path) for name, path in netns.items()}

        assert seen(podman, netns["n1"], hosts["n1"], 80, client=netns["n0"]) == "10.81.0.1"
        assert seen(podman, netns["i1"], hosts["i1"], 80, client=netns["i0"]) == ""
        assert seen(podman, netns["i0"], hosts["i0"], 80, client=netns["i1"]) == ""
        assert seen(podman, twin, address(podman, twin), 80, client=netns["i0"]) == hosts["i0"]
        assert node.get(f"{OUTSIDE4}/cgi-bin/who", netns["i0"]) == NODE4

        podman.remove(*netns, "twin")


def test_pod(podman: Podman) -> None:
    """The containers of a pod share a network and ports of the node."""
    bridge = podman.network("n1", V4, V6)
    with leaving_nothing(podman, bridge):
        words = ("--infra-image", image.NAME, "--infra-command=/pause", "--network=n1")
        podman.ok("pod", "create", "--name=p1", *words, *PORTS)
        for name in ("c1", "c2"):
            podman.ok("run", "--detach", "--pod=p1", "--name", name, image.NAME)
        infra = podman.ok("pod", "inspect", "--format", "{{.InfraContainerID}}", "p1")
        assert_published(podman, podman.netns(infra))

        podman.ok("pod", "rm", "--force", "--time=0", "p1")


def test_several_at_once(podman: Podman) -> None:
    """Containers that are made and removed at the same time have addresses of their own."""
    bridge = podman.network("n1", V4, V6)
    names = [f"c{number}" for number in range(8)]
    with leaving_nothing(podman, bridge), ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda name: podman.start(name, "--network=n1"), names))
        assert len({address(podman, path) for path in paths}) == len(names)

        list(pool.map(podman.remove, names))
