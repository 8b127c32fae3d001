"""portmap: what ADD, DEL and CHECK make of ports, as real connections and `nft` show."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from cni_common.kernel.netns import NetNS
from tests.kernel.ports import GATEWAY4, GATEWAY6, HOST4, HOST6, OUTSIDE4, OUTSIDE6, Node, port
from tests.machine import CNI_BIN, Json, Machine
from tests.sockets import Server, asks, open_socket, serving


@pytest.fixture
def node(machine: Machine) -> Node:
    """Give a node."""
    return Node(machine)


@pytest.mark.both_edges
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
    assert node.records() == []


@pytest.mark.both_edges
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_reach(node: Node, protocol: str) -> None:
    """All clients reach the port; only those that replies would miss are masqueraded."""
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


def test_bridges_that_keep_their_frames(node: Node) -> None:
    """A neighbour's answers pass the node also where netfilter sees nothing of bridged frames."""
    for family in ("iptables", "ip6tables"):
        sysctl = f"net.bridge.bridge-nf-call-{family}=0"
        node.machine.try_command(node.host, "sysctl", "-qw", sysctl)  # absent without br_netfilter
    container, neighbour = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(8080)), container)

    with serving(container, "tcp", 80) as (v4, v6):
        assert asks(neighbour, v4, HOST4, 8080) == GATEWAY4
        assert asks(neighbour, v6, HOST6, 8080) == GATEWAY6


def test_forwarded_packets_are_untouched(node: Node) -> None:
    """CVE-2025-67499: only what is for an address of the node is looked up by its port."""
    container, neighbour = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(8080), port(53, 53, "udp")), container)
    node.machine.do(
        node.outside,
        f"ip route add 10.9.0.0/24 via {HOST4}",
        f"ip route add fd00:9::/64 via {HOST6}",
    )

    for protocol, number in (("tcp", 8080), ("udp", 53)):
        with serving(node.outside, protocol, number) as (v4, v6), serving(container, protocol, 80):
            assert asks(neighbour, v4, OUTSIDE4, number) == node.address(4, "c2")
            assert asks(neighbour, v6, OUTSIDE6, number) == node.address(6, "c2")
        with serving(neighbour, protocol, number) as (v4, v6):
            assert asks(node.outside, v4, node.address(4, "c2"), number) == OUTSIDE4
            assert asks(node.outside, v6, node.address(6, "c2"), number) == OUTSIDE6


def test_address_of_the_node(node: Node) -> None:
    """A port with hostIP is for that address alone, and goes before one for all addresses."""
    node.machine.do(node.host, "ip addr add 192.0.2.9/24 dev uplink")
    one, two = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(80, 80, hostIP="192.0.2.9"), port(81, hostIP=HOST6)), one)
    with serving(one, "tcp", 80) as (v4, v6), serving(two, "tcp", 80) as (other, _):
        assert asks(node.outside, v4, "192.0.2.9", 80) == OUTSIDE4
        assert asks(node.outside, v4, HOST4, 80) == ""
        assert asks(node.outside, v6, HOST6, 81) == OUTSIDE6
        assert asks(node.outside, v4, HOST4, 81) == ""

        node.ok("ADD", node.config(port(80), containerid="c2"), two, containerid="c2")

        assert asks(node.outside, v4, "192.0.2.9", 80) == OUTSIDE4
        assert asks(node.outside, other, HOST4, 80) == OUTSIDE4


@pytest.mark.parametrize("unspecified", ["0.0.0.0", "::"])
def test_unspecified_address(node: Node, unspecified: str) -> None:
    """0.0.0.0 and :: are all addresses of their family, and none of the other."""
    container = node.attach()
    node.ok("ADD", node.config(port(8080, hostIP=unspecified)), container)

    with serving(container, "tcp", 80) as (v4, v6):
        seen = asks(node.outside, v4, HOST4, 8080), asks(node.outside, v6, HOST6, 8080)

    assert seen == ((OUTSIDE4, "") if unspecified == "0.0.0.0" else ("", OUTSIDE6))


def crc32c(data: bytes) -> int:
    """Return the checksum that SCTP has (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_sctp(node: Node) -> None:
    """An SCTP packet arrives at the container's port: this kernel may have no SCTP of its own."""
    container = node.attach()
    node.ok("ADD", node.config(port(9000, 9, "sctp")), container)
    init = struct.pack("!BBHIIHHI", 1, 0, 20, 7, 65536, 1, 1, 1)
    packet = struct.pack("!HHII", 5000, 9000, 0, 0) + init
    packet = packet[:8] + struct.pack("<I", crc32c(packet)) + packet[12:]
    raw = (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    inside, outside = NetNS(container), NetNS(node.outside)

    with (
        inside.run(lambda: socket.socket(*raw)) as receiver,
        outside.run(lambda: socket.socket(*raw)) as sender,
    ):
        receiver.settimeout(2)
        sender.sendto(packet, (HOST4, 0))
        arrived, peer = receiver.recvfrom(1500)

    inside.close()
    outside.close()
    assert peer[0] == OUTSIDE4
    assert struct.unpack_from("!HH", arrived, 20) == (5000, 9)


@pytest.mark.full_kernel
@pytest.mark.emulated_machine
def test_sctp_associations(node: Node) -> None:
    """Sockets of SCTP reach the port from outside, from a neighbour and from the container."""
    container, neighbour = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(9000, 9, "sctp")), container)

    with serving(container, "sctp", 9) as (v4, v6):
        assert asks(node.outside, v4, HOST4, 9000) == OUTSIDE4
        assert asks(node.outside, v6, HOST6, 9000) == OUTSIDE6
        assert asks(neighbour, v4, HOST4, 9000) == GATEWAY4
        assert asks(container, v4, HOST4, 9000) == GATEWAY4
        assert asks(node.outside, v4, HOST4, 9001) == ""


def forged(node: Node, container: str, source: str, destination: str) -> bytes:
    """Return a frame from a container to the bridge with a UDP packet as nobody may send it."""
    macs = [
        bytes.fromhex(str(link["address"]).replace(":", ""))
        for link in (node.machine.link(node.host, "br0"), node.machine.link(container, "eth0"))
        if link
    ]
    udp = struct.pack("!HHHH", 4000, 5000, 9, 0) + b"!"
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 29, 1, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack("!10H", header))
    total = (total >> 16) + (total & 0xFFFF)
    checksum = ~((total >> 16) + total) & 0xFFFF
    return b"".join(
        [*macs, b"\x08\x00", header[:10], struct.pack("!H", checksum), header[12:], udp]
    )


@pytest.mark.parametrize(
    ("source", "destination"), [("10.9.0.2", "127.0.0.1"), ("127.0.0.1", GATEWAY4)]
)
def test_guard_of_localhost(node: Node, source: str, destination: str) -> None:
    """CVE-2020-8558: a container cannot reach what listens on 127.0.0.1, nor pose as it."""
    container = node.attach()
    node.ok("ADD", node.config(port(8080)), container)
    assert node.route_localnet() == "1"
    frame = forged(node, container, source, destination)
    netns = NetNS(container)
    packets = netns.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    netns.run(lambda: packets.bind(("eth0", 0)))
    # Without this the kernel refuses the second packet by itself.
    node.machine.do(node.host, "sysctl -qw net.ipv4.conf.br0.accept_local=1")
    arrived = []

    with open_socket(node.host, "udp", destination) as server, packets:
        server.bind((destination, 5000))
        for _ in range(2):
            packets.send(frame)
            try:
                arrived.append(server.recv(9))
            except TimeoutError:
                arrived.append(b"")
            node.machine.do(node.host, "nft flush chain inet pycni hostport_guard")

    netns.close()
    assert arrived == [b"", b"!"]  # the second one without the guard


def test_localhost_ends_with_the_last_port(node: Node) -> None:
    """The sysctl is set while the guard is there, for the interface that needs it alone."""
    first, second = node.attach(), node.attach("c2")
    for containerid, netns, number in (("c1", first, 80), ("c2", second, 81)):
        config = node.config(port(number), containerid=containerid)
        node.ok("ADD", config, netns, containerid=containerid)
    seen = [(node.route_localnet(), node.route_localnet("uplink"))]

    for containerid in ("c1", "c2"):
        node.ok("DEL", node.config(containerid=containerid), containerid=containerid)
        seen.append((node.route_localnet(), node.route_localnet("uplink")))

    assert seen == [("1", "0"), ("1", "0"), ("0", "0")]


def test_localhost_that_others_have_opened(node: Node) -> None:
    """A sysctl that was set before stays set."""
    container = node.attach()
    node.machine.do(node.host, "sysctl -qw net.ipv4.conf.br0.route_localnet=1")

    node.ok("ADD", node.config(port(80)), container)
    node.ok("DEL", node.config(), container)

    assert node.route_localnet() == "1"


READ_ONLY = """
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec "$0"
"""


@pytest.mark.without_engine(reason="runs executables")
def test_read_only_sysctls(node: Node) -> None:
    """All but connections from 127.0.0.1 works, ADD says so, and DEL takes everything back."""
    container = node.attach()
    config = node.config(port(8080))

    def run(command: str) -> str:
        words = ["unshare", "--mount", "--", "sh", "-ec", READ_ONLY, str(CNI_BIN / "portmap")]
        environ = {**node.machine.environ(command, container), "CNI_PATH": str(CNI_BIN)}
        done = node.machine.try_command(node.host, *words, stdin=json.dumps(config), env=environ)
        assert done.returncode == 0, done.stdout
        return done.stderr

    assert "cannot set net/ipv4/conf/br0/route_localnet (Read-only file system)" in run("ADD")
    with serving(container, "tcp", 80) as (v4, v6):
        assert asks(node.outside, v4, HOST4, 8080) == OUTSIDE4
        assert asks(node.outside, v6, HOST6, 8080) == OUTSIDE6
        assert asks(node.host, v4, HOST4, 8080) == HOST4
    run("CHECK")
    run("DEL")
    assert node.machine.nft() == []


def test_without_snat(node: Node) -> None:
    """No client is masqueraded, and 127.0.0.1 is left as it was."""
    container = node.attach()
    config = node.config(port(8080), snat=False)
    node.ok("ADD", config, container)
    node.ok("CHECK", config, container)

    with serving(container, "tcp", 80) as (v4, _):
        assert asks(node.outside, v4, HOST4, 8080) == OUTSIDE4
        assert asks(node.host, v4, "127.0.0.1", 8080) == ""
    assert node.route_localnet() == "0"
    node.ok("DEL", config, container)
    assert node.machine.nft() == []


def test_masquerade_all(node: Node) -> None:
    """With masqAll every source is the node."""
    container = node.attach()
    config = node.config(port(8080), masqAll=True)
    node.ok("ADD", config, container)
    node.ok("CHECK", config, container)

    with serving(container, "tcp", 80) as (v4, v6):
        assert asks(node.outside, v4, HOST4, 8080) == GATEWAY4
        assert asks(node.outside, v6, HOST6, 8080) == GATEWAY6
    node.ok("DEL", config, container)
    assert node.machine.nft() == []


def test_ports_of_masquerading_network(node: Node) -> None:
    """Beside masquerading it works as without, and the last user removes the table."""
    container = node.attach(ipMasq=True)
    bridge, config = node.network(ipMasq=True), node.config(port(8080))
    for first, second in (("portmap", "bridge"), ("bridge", "portmap")):
        node.ok("ADD", config, container)
        with serving(container, "tcp", 80) as (v4, _):
            assert asks(node.outside, v4, HOST4, 8080) == OUTSIDE4
            assert asks(container, v4, HOST4, 8080) == GATEWAY4

        node.machine.ok(first, "DEL", bridge if first == "bridge" else config, container)
        chains = {entry["chain"]["name"] for entry in node.machine.nft() if "chain" in entry}
        assert ("hostports" in chains) == (first == "bridge")
        assert ("postrouting" in chains) == (first == "portmap")
        node.machine.ok(second, "DEL", bridge if second == "bridge" else config, container)

        assert node.machine.nft() == []
        node.attach(netns=container, ipMasq=True)
        config = node.config(port(8080))


def asks_again(node: Node, source_port: int) -> Callable[[Server], str]:
    """Return a question by UDP to port 8080 of the node, always from the same port."""
    return lambda server: asks(node.outside, server, HOST4, 8080, source=("0.0.0.0", source_port))


@pytest.mark.parametrize("count", [1, 200])
def test_connections_of_a_reused_udp_port(node: Node, count: int) -> None:
    """A UDP client that never pauses follows the port: to the node, c1, c2 and the node again.

    So it is for one port, and for one of hundreds.
    """
    first, second = node.attach(), node.attach("c2")
    ask = asks_again(node, 4444)
    ports = [port(8080 + number, 80, "udp") for number in range(count)]
    one = node.config(*ports)
    two = node.config(*ports, containerid="c2")
    third = node.attach("c3")  # has connections tracked from the first packet on
    node.ok("ADD", node.config(port(9), containerid="c3"), third, containerid="c3")
    seen = []

    with (
        serving(node.host, "udp", 8080, ["0.0.0.0"]) as (host,),
        serving(first, "udp", 80, ["0.0.0.0"]) as (c1,),
        serving(second, "udp", 80, ["0.0.0.0"]) as (c2,),
    ):
        seen.append(ask(host))
        node.ok("ADD", one, first)
        seen.append(ask(c1))
        node.ok("DEL", one, first)
        seen.append(ask(host))
        node.ok("ADD", two, second, containerid="c2")
        seen.append(ask(c2))
        node.ok("DEL", two, second, containerid="c2")
        seen.append(ask(host))

    assert seen == [OUTSIDE4] * 5


@pytest.mark.parametrize("count", [1, 200])
def test_connections_of_others_are_remembered(node: Node, count: int) -> None:
    """Connections that pass through the node to the same port of another are not forgotten."""
    ports = [port(8080 + number, 80, "udp") for number in range(count)]
    container, neighbour = node.attach(), node.attach("c2")
    node.machine.do(node.outside, f"ip route add 10.9.0.0/24 via {HOST4}")
    with serving(node.outside, "udp", 8080, ["0.0.0.0"]) as (server,):
        node.machine.do(
            node.host,
            "nft add table ip watch",
            "nft add chain ip watch f { type filter hook forward priority 0 ; }",
            "nft add rule ip watch f ct state new udp dport 8080 counter",
        )
        for _ in range(2):
            assert asks(neighbour, server, OUTSIDE4, 8080, source=("0.0.0.0", 4445))
            node.ok("DEL", node.config(), container)
            node.ok("ADD", node.config(*ports), container)
        listing = node.machine.command(node.host, "nft", "list", "chain", "ip", "watch", "f")

    assert "counter packets 1 " in listing


def test_tables_of_others_are_left_alone(node: Node) -> None:
    """Neither ADD nor DEL changes a table that is not ours; an earlier redirection stands."""
    foreign = f"""
    table ip nat {{ chain PREROUTING {{ type nat hook prerouting priority -100;
      ip daddr {HOST4} tcp dport 8080 dnat to 10.9.0.3:80; }}; }}
    """
    node.machine.command(node.host, "nft", "-f", "-", stdin=foreign)
    before = node.machine.nft()
    container, service = node.attach(), node.attach("c2")

    node.ok("ADD", node.config(port(8080)), container)
    with serving(service, "tcp", 80, ["0.0.0.0"]) as (server,), serving(container, "tcp", 80):
        assert asks(node.outside, server, HOST4, 8080) == OUTSIDE4
    assert [entry for entry in before if entry not in node.machine.nft()] == []
    node.ok("DEL", node.config(), container)

    assert node.machine.nft() == before


def test_a_port_is_an_element(node: Node) -> None:
    """Ten containers with four ports each add not one rule to what the first has made."""
    ports = [port(1000 + number) for number in range(4)]
    container = node.attach()
    node.ok("ADD", node.config(*ports), container)
    rules = [entry for entry in node.machine.nft() if "rule" in entry]

    for count in range(1, 10):
        cid, mine = f"c{count + 1}", [port(1000 + 10 * count + number) for number in range(4)]
        netns = node.attach(cid)
        node.ok("ADD", node.config(*mine, containerid=cid), netns, containerid=cid)

    assert [entry for entry in node.machine.nft() if "rule" in entry] == rules
    assert [len(keys) for keys in node.mapped().values()] == [10] * 10


CONTAINERD: Json = {"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""}


@pytest.mark.parametrize("mapping", [CONTAINERD, {"hostPort": 8080, "containerPort": 80}])
def test_spellings_of_callers(node: Node, mapping: Json) -> None:
    """containerd writes the names of Go's fields; a port without a protocol is TCP's."""
    container = node.attach()
    node.ok("ADD", node.config(mapping), container)

    with serving(container, "tcp", 80) as (v4, _):
        assert asks(node.outside, v4, HOST4, 8080) == OUTSIDE4


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_versions(node: Node, version: str) -> None:
    """The result is prevResult, in the layout of each version."""
    container = node.machine.container()
    bridge = node.network(cniVersion=version)
    node.results["c1 eth0"] = node.machine.ok("bridge", "ADD", bridge, container)
    config = node.config(port(8080), cniVersion=version)

    result = node.ok("ADD", config, container)

    assert result == config["prevResult"]
    assert list(node.mapped()) == [f"portmap {node.machine.name} c1 eth0"]
    node.ok("DEL", config, container)
    assert node.machine.nft() == []


def test_addresses_of_other_interfaces(node: Node) -> None:
    """Ports lead to the address of the interface at hand, not to another plugin's."""
    container = node.attach()
    config = node.config(port(8080))
    result: Any = json.loads(json.dumps(config["prevResult"]))
    result["interfaces"].append({"name": "net9", "sandbox": container})
    result["ips"].insert(0, {"interface": 3, "address": "10.99.0.9/24"})

    node.ok("ADD", {**config, "prevResult": result}, container)

    assert "10.99.0.9" not in json.dumps(node.machine.nft())
    assert "10.9.0.2" in json.dumps(node.machine.nft())
    assert os.listdir(f"{node.machine.state_dir}/attachments")


def test_interfaces_of_one_container(node: Node) -> None:
    """Behind ptp each container has an interface of its own, whose guard goes with its ports."""
    ipam = {**node.network()["ipam"], "dataDir": f"{node.machine.data_dir}-ptp"}
    ptp = {"cniVersion": "1.0.0", "name": node.machine.name, "type": "ptp", "ipam": ipam}
    veths = []
    for number, cid in enumerate(("c1", "c2")):
        netns = node.machine.container()
        result = node.machine.reference("ptp", "ADD", ptp, netns, containerid=cid)
        node.results[f"{cid} eth0"] = result
        veths.append(result["interfaces"][0]["name"])
        config = node.config(port(8080 + number), containerid=cid, cniVersion="1.0.0")
        node.ok("ADD", config, netns, containerid=cid)
        with serving(netns, "tcp", 80, ["0.0.0.0"]) as (server,):
            assert asks(node.host, server, "127.0.0.1", 8080 + number)
            assert asks(node.outside, server, HOST4, 8080 + number) == OUTSIDE4

    node.ok("DEL", node.config(cniVersion="1.0.0"))

    listing = node.machine.command(node.host, "nft", "list", "set", "inet", "pycni", "localnet")
    assert [name for name in veths if name in listing] == veths[1:]
    assert [node.route_localnet(name) for name in veths] == ["0", "1"]


@pytest.mark.both_edges
def test_hundreds_of_scattered_ports(node: Node) -> None:
    """Each is mapped on both families, CHECK sees each, and DEL takes all of them back."""
    container = node.attach()
    config = node.config(*(port(10_000 + 3 * number, 80, "tcp") for number in range(500)))

    node.ok("ADD", config, container)

    (keys,) = node.mapped().values()
    assert len(keys) == 2 * 500 + 2
    with serving(container, "tcp", 80) as (v4, _):
        assert asks(node.outside, v4, HOST4, 10_000 + 3 * 499) == OUTSIDE4
    node.ok("CHECK", config, container)
    node.ok("DEL", config, container)
    assert node.machine.nft() == []
    assert node.records() == []


@pytest.mark.both_edges
def test_taken_one_of_hundreds_of_ports(node: Node) -> None:
    """The refusal names the port and its owner, and leaves no other of them."""
    one, two = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(10_399)), one)
    ports = [port(10_000 + number) for number in range(400)]
    before = node.mapped()

    error = node.machine.refused(
        "portmap", "ADD", node.config(*ports, containerid="c2"), two, containerid="c2"
    )

    assert "host port 10399/tcp is mapped for" in error["msg"]
    assert node.mapped() == before
    node.ok("DEL", node.config(*ports, containerid="c2"), two, containerid="c2")
    assert node.mapped() == before
