"""portmap beside the Go plugin: the same requests, the same connections and iptables rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pytest

from tests.kernel.ports import HOST4, HOST6, Node, port
from tests.machine import Json, Machine, machine_at
from tests.sockets import asks, serving

ADDRESSES = (HOST4, HOST6, "127.0.0.1")
SETTINGS: Mapping[str, Json] = {
    "plain": {},
    "no snat": {"snat": False},
    "masqAll": {"masqAll": True},
    "mark bit": {"markMasqBit": 7},
}
# The reference's nftables rules leave a neighbour's source as it is, so that answers pass the node
# only where bridges hand their frames to netfilter; its iptables rules masquerade it. And with
# nftables its masqAll has no effect.
EXCEPTIONS = {
    ("nftables", "plain"): {"neighbour"},
    ("nftables", "mark bit"): {"neighbour"},
    ("nftables", "masqAll"): {"outside", "host", "neighbour"},
}
PORTS: Mapping[str, Json] = {
    "tcp": port(8080),
    "udp": port(8080, 80, "udp"),
    "hostIP4": port(8080, hostIP=HOST4),
    "hostIP6": port(8080, hostIP=HOST6),
    "loopback": port(8080, hostIP="127.0.0.1"),
    "any4": port(8080, hostIP="0.0.0.0"),
    "any6": port(8080, hostIP="::"),
}


@pytest.fixture
def node(machine: Machine) -> Node:
    """Give a node."""
    return Node(machine)


def old(config: Json) -> Json:
    """Return a configuration of a version that the Go plugin knows as we do."""
    previous = {**config["prevResult"], "cniVersion": "1.0.0"}
    return {**config, "cniVersion": "1.0.0", "prevResult": previous}


def reachable(
    node: Node, containers: Mapping[str, str], protocol: str
) -> dict[tuple[str, str], str]:
    """Return whom the container sees when each of these asks for port 8080 of each address."""
    seen = {}
    with serving(containers["container"], protocol, 80) as (v4, v6):
        for who, netns in {"outside": node.outside, "host": node.host, **containers}.items():
            for address in ADDRESSES:
                if address != "127.0.0.1" or who == "host":
                    server = v6 if ":" in address else v4
                    seen[who, address] = asks(netns, server, address, 8080)
    return seen


@pytest.mark.without_engine(reason="compares two programs")
@pytest.mark.timeout(300)
@pytest.mark.rotating(3)
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize(
    ("ports", "settings"),
    [
        *((name, "plain") for name in PORTS),
        *(("tcp", name) for name in SETTINGS if name != "plain"),
    ],
)
def test_reachability(node: Node, backend: str, ports: str, settings: str) -> None:
    """The same clients reach the container, under the same addresses, by either plugin."""
    containers = {"container": node.attach(), "neighbour": node.attach("c2")}
    config = old(node.config(PORTS[ports], backend=backend, **SETTINGS[settings]))
    protocol = PORTS[ports]["protocol"]

    node.machine.reference("portmap", "ADD", config, containers["container"])
    theirs = reachable(node, containers, protocol)
    node.machine.reference("portmap", "DEL", config, containers["container"])
    node.machine.do(node.host, "nft flush ruleset")
    node.ok("ADD", config, containers["container"])
    ours = reachable(node, containers, protocol)

    assert any(ours.values())
    assert {key for key in ours if ours[key]} == {key for key in theirs if theirs[key]}
    different = {who for (who, address), seen in ours.items() if seen != theirs[who, address]}
    assert different <= EXCEPTIONS.get((backend, settings), set())


def saved(node: Node, command: str) -> list[str]:
    """Return table nat as `command` saves it, chain by chain, with numbers for the hashes."""
    text = re.sub(r"\[\d+:\d+\]", "", node.machine.command(node.host, command, "-t", "nat"))
    chains = re.findall(r"-A CNI-HOSTPORT-DNAT .* -j (CNI-DN-[0-9a-f]{21})", text)
    for number, chain in enumerate(dict.fromkeys(chains)):
        text = text.replace(chain, f"CHAIN{number}")
    lines = [line for line in text.splitlines() if line[0] != "#"]
    return sorted(lines, key=lambda line: line.split()[:2] if line[0] == "-" else [line])


LAYOUTS: Mapping[str, tuple[Sequence[Json], Json]] = {
    "plain": ([port(8080), port(53, 53, "udp"), port(81, 8081, hostIP=HOST4)], {}),
    "sctp": ([port(8080, 80, "sctp")], {}),
    "many": ([port(1000 + number) for number in range(32)], {}),
    "no snat": ([port(8080)], {"snat": False}),
    "masqAll": ([port(8080)], {"masqAll": True}),
    "mark bit": ([port(8080)], {"markMasqBit": 0}),
    "own chain": ([port(8080)], {"externalSetMarkChain": "KUBE-MARK-MASQ"}),
    "conditions": (
        [port(8080)],
        {"conditionsV4": ["!", "-s", "10.0.0.0/8"], "conditionsV6": ["-s", "2001:db8::/32"]},
    ),
}


@pytest.mark.rotating(3)
@pytest.mark.parametrize("name", LAYOUTS)
def test_iptables_layout(node: Node, tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """`iptables-save` after our ADDs is, up to hashes, that after the Go plugin's."""
    ports, settings = LAYOUTS[name]
    listings = []
    with machine_at(tmp_path_factory.mktemp("other"), node.machine.name) as machine:
        for one in (node, Node(machine)):
            for command in ("iptables", "ip6tables"):
                one.machine.do(one.host, f"{command} -t nat -N KUBE-MARK-MASQ")
            for number, cid in enumerate(("c1", "c2")):
                container = one.attach(cid)
                mine = [{**entry, "hostPort": entry["hostPort"] + 100 * number} for entry in ports]
                config = one.config(*mine, containerid=cid, backend="iptables", **settings)
                if one is node:
                    one.ok("ADD", config, container, containerid=cid)
                    one.ok("CHECK", config, container, containerid=cid)
                else:
                    machine.reference("portmap", "ADD", old(config), container, containerid=cid)
            listings.append([saved(one, "iptables-save"), saved(one, "ip6tables-save")])

    assert listings[0] == listings[1]
    assert any("DNAT" in line for lines in listings[0] for line in lines)


def test_rules_of_others_come_first(node: Node) -> None:
    """CVE-2019-9946: a rule that redirects a port already goes before ours, in iptables, too."""
    container, service = node.attach(), node.attach("c2")
    target = node.address(4, "c2")
    node.machine.do(
        node.host,
        f"iptables -t nat -A PREROUTING -d {HOST4} -p tcp --dport 8080"
        f" -j DNAT --to-destination {target}:80",
    )

    node.ok("ADD", node.config(port(8080), backend="iptables"), container)

    with serving(service, "tcp", 80, ["0.0.0.0"]) as (server,), serving(container, "tcp", 80):
        assert asks(node.outside, server, HOST4, 8080)
