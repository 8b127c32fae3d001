"""portmap: whose a port is, and what DEL, CHECK, GC and STATUS do with it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cni_common.kernel import iptables, nft_table
from cni_common.kernel.netns import NetNS
from cni_common.kernel.nft_layout import TABLE
from cni_common.node.liveness import GRACE_SECONDS
from plugins.portmap import layout, shared_ports
from tests.faults.inprocess import Fault, faulty
from tests.kernel.ports import HOST4, OUTSIDE4, Node, port
from tests.machine import Json, Machine, error_of
from tests.sockets import asks, serving

BACKENDS = ["nftables", "iptables"]


@pytest.fixture
def node(machine: Machine) -> Node:
    """Give a node."""
    return Node(machine)


def age(node: Node) -> None:
    """Make all records older than GC's grace time."""
    for path in node.records():
        os.utime(path, (time.time() - GRACE_SECONDS - 60,) * 2)


def rules(node: Node) -> list[str]:
    """Return the rules of iptables that lead to containers."""
    saved = node.machine.command(node.host, "iptables-save", "-t", "nat")
    return [line for line in saved.splitlines() if "CNI-DN-" in line]


def is_mapped(node: Node, backend: str) -> bool:
    """Tell whether anything is mapped."""
    return bool(rules(node)) if backend == "iptables" else bool(node.mapped())


@pytest.mark.parametrize("backend", BACKENDS)
def test_port_of_a_living_container(node: Node, backend: str) -> None:
    """A port that another has is refused by one clear error, and nothing changes."""
    first, second = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(8080), backend=backend), first)
    before = node.mapped(), rules(node), node.records()
    config = node.config(port(81), port(8080), containerid="c2", backend=backend)

    error = node.machine.refused("portmap", "ADD", config, second, containerid="c2")

    owner = f"'portmap {node.machine.name} c1 eth0'"
    assert f"host port 8080/tcp is mapped for {owner}" in error["msg"]
    assert (node.mapped(), rules(node), node.records()) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_port_at_the_same_moment(node: Node, backend: str) -> None:
    """Of those that ask for a port at once at most one gets it, and so does a later one."""
    names = ["c1", "c2", "c3", "c4"]
    containers = {name: node.attach(name) for name in names}
    configs = {name: node.config(port(8080), containerid=name, backend=backend) for name in names}

    def add(name: str) -> bool:
        machine, netns = node.machine, containers[name]
        reply = machine.invoke("portmap", "ADD", configs[name], netns, containerid=name)
        assert not reply.exit_code or "is mapped for" in error_of(reply.stdout)["msg"]
        return not reply.exit_code

    for _ in range(3):
        with ThreadPoolExecutor(len(names)) as pool:
            assert sum(pool.map(add, names)) <= 1
        for name in names:
            node.ok("DEL", configs[name], containers[name], containerid=name)
        assert not is_mapped(node, backend)
        assert node.records() == []
    assert add("c1")


@pytest.mark.parametrize("backend", BACKENDS)
def test_port_of_a_dead_container(node: Node, backend: str) -> None:
    """Ports of a gone container are taken over, and its late DEL takes nothing back."""
    first, second = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(8080), backend=backend), first)
    late = node.config(port(8080), backend=backend)
    node.machine.end(first)

    config = node.config(port(8080), containerid="c2", backend=backend)
    node.ok("ADD", config, second, containerid="c2")
    node.ok("DEL", late)

    with serving(second, "tcp", 80, ["0.0.0.0"]) as (server,):
        assert asks(node.outside, server, HOST4, 8080) == OUTSIDE4
    node.ok("CHECK", config, second, containerid="c2")


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_networks_of_a_container(node: Node, backend: str) -> None:
    """DEL for one network, or for one interface, leaves the ports of the others."""
    container = node.attach()
    node.attach(ifname="eth1", netns=container)
    one = node.config(port(81), backend=backend)
    two = node.config(port(82), ifname="eth1", backend=backend)
    other = {**node.config(port(83), backend=backend), "name": f"{node.machine.name}-2"}
    for config, ifname in ((one, "eth0"), (two, "eth1"), (other, "eth0")):
        node.ok("ADD", {**config, "snat": False}, container, ifname=ifname)

    node.ok("DEL", one, container)

    node.ok("CHECK", {**two, "snat": False}, container, ifname="eth1")
    node.ok("CHECK", {**other, "snat": False}, container)
    node.machine.refused("portmap", "CHECK", {**one, "snat": False}, container)


class Sharing:
    """A container with one wish for a port on each of its networks."""

    def __init__(self, node: Node, backend: str, number: int) -> None:
        self.node = node
        self.ifnames = [f"eth{i}" for i in range(number)]
        self.container = node.attach(ifname="eth0")
        for ifname in self.ifnames[1:]:
            node.attach(ifname=ifname, netns=self.container)
        ports = (port(8080), port(53, 53, "udp"))
        self.configs = {
            ifname: {
                **node.config(*ports, ifname=ifname, backend=backend, snat=False),
                "name": f"{node.machine.name}-{ifname}",
            }
            for ifname in self.ifnames
        }

    def ok(self, command: str, ifname: str) -> None:
        """Run portmap for one of the networks."""
        self.node.ok(command, self.configs[ifname], self.container, ifname=ifname)

    def serves(self, ifname: str) -> None:
        """See that the port leads to the address of this interface and nowhere else."""
        for name in self.ifnames:
            address = self.node.address(4, ifname=name)
            with serving(self.container, "tcp", 80, [address]) as (server,):
                answer = asks(self.node.outside, server, HOST4, 8080)
            assert answer == (OUTSIDE4 if name == ifname else ""), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_port_on_two_networks_of_a_container(node: Node, backend: str) -> None:
    """A container's port leads to the network that asked first, then to the one that is left."""
    sharing = Sharing(node, backend, 2)
    sharing.ok("ADD", "eth0")
    sharing.ok("ADD", "eth1")
    for ifname in sharing.ifnames:
        sharing.ok("CHECK", ifname)
    sharing.serves("eth0")

    sharing.ok("DEL", "eth0")

    sharing.ok("CHECK", "eth1")
    sharing.serves("eth1")
    sharing.ok("DEL", "eth1")
    assert not is_mapped(node, backend)
    assert node.records() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_waiting_ones_come_in_order(node: Node, backend: str) -> None:
    """Of three networks the second may go before the first, and the third has the port then."""
    sharing = Sharing(node, backend, 3)
    for ifname in sharing.ifnames:
        sharing.ok("ADD", ifname)
    sharing.ok("DEL", "eth0")
    sharing.serves("eth1")
    sharing.ok("ADD", "eth0")

    sharing.ok("DEL", "eth1")

    sharing.serves("eth2")
    sharing.ok("DEL", "eth2")
    sharing.serves("eth0")
    sharing.ok("DEL", "eth0")
    assert not is_mapped(node, backend)
    assert node.records() == []


def test_waiting_ones_of_a_lost_ruleset(node: Node) -> None:
    """After a flush every network's ADD may be repeated, and nothing is left in the end."""
    sharing = Sharing(node, "nftables", 2)
    for _ in range(2):
        for ifname in sharing.ifnames:
            sharing.ok("ADD", ifname)
        sharing.serves("eth0")
        node.machine.do(node.host, "nft flush ruleset")

    for ifname in sharing.ifnames:
        sharing.ok("DEL", ifname)

    assert node.machine.nft() == []
    assert node.records() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_add(node: Node, backend: str) -> None:
    """An ADD for what is mapped already is refused; after a DEL it is not."""
    container = node.attach()
    node.ok("ADD", node.config(port(80), backend=backend), container)

    error = node.machine.refused(
        "portmap", "ADD", node.config(port(81), backend=backend), container
    )

    assert error["code"] == 4
    assert "DEL it first" in error["msg"]
    node.ok("CHECK", node.config(port(80), backend=backend), container)
    node.ok("DEL", node.config(backend=backend), container)
    node.ok("ADD", node.config(port(81), backend=backend), container)


@pytest.mark.parametrize("backend", BACKENDS)
def test_add_after_a_flush(node: Node, backend: str) -> None:
    """A runtime may ADD anew after a flush of the ruleset, as a firewall's reload does it."""
    container = node.attach()
    node.ok("ADD", node.config(port(80), backend=backend), container)
    node.machine.do(node.host, "nft flush ruleset")

    node.ok("ADD", node.config(port(81), backend=backend), container)

    node.ok("CHECK", node.config(port(81), backend=backend), container)
    assert node.route_localnet() == "1"
    node.ok("DEL", node.config(port(81), backend=backend), container)
    assert node.route_localnet() == "0"


def test_no_ports_no_messages(node: Node) -> None:
    """Without ports prevResult is passed on, and neither firewall nor record is touched."""
    container = node.attach()
    for config in (node.config(), {**node.config(), "runtimeConfig": {}}):
        for command in ("ADD", "CHECK", "DEL"):
            fault = Fault()
            with faulty(node.machine, fault) as host:
                result = node.ok(command, config, container, host=host)
            assert result == (config["prevResult"] if command == "ADD" else {})
            assert set(fault.done) <= {"open namespace", "find record", "remove record"}
    assert node.records() == []


@pytest.mark.both_edges
@pytest.mark.parametrize("backend", BACKENDS)
def test_del_with_nothing_known(node: Node, backend: str) -> None:
    """DEL needs neither namespace, prevResult, runtimeConfig nor the backend; nor does a second."""
    container = node.attach()
    config = node.config(port(80), port(53, 53, "udp"), backend=backend)
    node.ok("ADD", config, container)
    node.machine.forget(container)
    bare = {"cniVersion": "1.1.0", "name": node.machine.name, "type": "portmap"}

    for _ in range(2):
        node.ok("DEL", bare)

    assert not is_mapped(node, backend)
    assert node.records() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_del_without_a_record(node: Node, backend: str) -> None:
    """When the record is lost, what runtimeConfig and prevResult tell is enough."""
    container = node.attach()
    config = node.config(port(80), backend=backend)
    node.ok("ADD", config, container)
    for path in node.records():
        path.unlink()

    node.ok("DEL", config, container)

    assert not is_mapped(node, backend)


def test_del_leaves_what_another_has_by_now(node: Node) -> None:
    """After a flush the port may have a new owner, which an old one's DEL does not touch."""
    first, second = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(80)), first)
    late = node.config()
    node.machine.do(node.host, "nft flush ruleset")
    node.machine.end(first)
    two = node.config(port(80), containerid="c2")
    node.ok("ADD", two, second, containerid="c2")

    node.ok("DEL", late)

    node.ok("CHECK", two, second, containerid="c2")


LOSSES = {
    "ruleset": "nft flush ruleset",
    "map": "nft flush map inet pycni hostports4; nft flush map inet pycni hostports6",
    "element": "nft delete element inet pycni hostports4 {{ tcp . 8080 }}",
    "owners": "nft flush ruleset; rm -r {state}/hostports",
}


@pytest.mark.rotating(2)
@pytest.mark.both_edges
@pytest.mark.parametrize("name", LOSSES)
def test_port_of_a_living_container_whose_rules_are_lost(node: Node, name: str) -> None:
    """A port is its container's as long as that lives, whatever else is added after the loss."""
    first, other, late = node.attach(), node.attach("c2"), node.attach("c3")
    node.ok("ADD", node.config(port(8080)), first)
    command = LOSSES[name].format(state=node.machine.state_dir)
    node.machine.command(node.host, "sh", "-ec", command)
    node.ok("ADD", node.config(port(9090), containerid="c2"), other, containerid="c2")
    config = node.config(port(8080), containerid="c3")

    error = node.machine.refused("portmap", "ADD", config, late, containerid="c3")

    owner = f"'portmap {node.machine.name} c1 eth0'"
    assert f"host port 8080/tcp is mapped for {owner}" in error["msg"]
    node.ok("DEL", node.config(), first)
    node.ok("ADD", config, late, containerid="c3")
    with serving(late, "tcp", 80, ["0.0.0.0"]) as (server,):
        assert asks(node.outside, server, HOST4, 8080) == OUTSIDE4


def test_owners_of_ports_go_with_the_last_port(node: Node) -> None:
    """The files with the owners stay while there is a port, and count no port given back."""
    directory = Path(node.machine.state_dir, "hostports")
    first, second = node.attach(), node.attach("c2")
    two = node.config(port(81), containerid="c2")
    node.ok("ADD", node.config(port(80)), first)
    node.ok("ADD", two, second, containerid="c2")

    node.ok("DEL", node.config(), first)
    data = {path.name: path.read_bytes() for path in directory.iterdir()}
    node.ok("DEL", two, second, containerid="c2")

    assert sorted(data) == ["0.0.0.0", "::"]
    assert [len(one.strip(bytes(1))) > 20 for one in data.values()] == [True, True]
    assert [one.find(one.strip(bytes(1))) // 32 for one in data.values()] == [81, 81]
    assert not directory.exists()


@pytest.mark.without_engine(reason="stops in this process")
@pytest.mark.parametrize("is_late", [True, False])
def test_owners_of_ports_go_when_two_dels_cross(
    node: Node, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """The files go with the later of two DELs that each see the other's port, or its record."""
    first, second = node.attach(), node.attach("c2")
    two = node.config(port(81), containerid="c2")
    node.ok("ADD", node.config(port(80)), first)
    node.ok("ADD", two, second, containerid="c2")
    release = shared_ports.release

    def crossed(*given: Any) -> None:
        monkeypatch.setattr(shared_ports, "release", release)
        if not is_late:
            release(*given)
        node.ok("DEL", two, second, containerid="c2")
        if is_late:
            release(*given)

    monkeypatch.setattr(shared_ports, "release", crossed)
    node.ok("DEL", node.config(), first)

    assert not Path(node.machine.state_dir, "hostports").exists()


DRIFTS = {
    "port": ("nft delete element inet pycni hostports4 {{ tcp . 80 }}", "host port 80/tcp"),
    "hairpin": ("nft delete element inet pycni hairpin6 {{ {v6} }}", "the container's {v6}"),
    "rules": ("nft flush chain inet pycni hostport_prerouting", "'hostport_prerouting'"),
    "chain": ("nft flush chain inet pycni hairpin-10.9.0.0-24", "'hairpin-10.9.0.0-24'"),
    "sysctl": ("sysctl -qw net.ipv4.conf.br0.route_localnet=0", "route_localnet"),
    "guard": ("nft flush chain inet pycni hostport_guard", "the guard of 127.0.0.0/8"),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_check(node: Node, name: str) -> None:
    """CHECK names the first thing that is not as ADD made it."""
    container = node.attach()
    config = node.config(port(80))
    node.ok("ADD", config, container)
    node.ok("CHECK", config, container)
    command, expected = (text.format(v6=node.address(6)) for text in DRIFTS[name])

    node.machine.do(node.host, command)

    assert expected in node.machine.refused("portmap", "CHECK", config, container)["msg"]


def test_check_compares_targets(node: Node) -> None:
    """A port that leads elsewhere is not what ADD made."""
    container = node.attach()
    node.ok("ADD", node.config(port(80, 81)), container)

    error = node.machine.refused("portmap", "CHECK", node.config(port(80, 82)), container)

    assert "leads elsewhere" in error["msg"]


def test_check_compares_protocols(node: Node) -> None:
    """By iptables, a port of UDP does not stand for the same one of TCP."""
    container = node.attach()
    config = node.config(port(53, 53), port(53, 53, "udp"), backend="iptables")
    node.ok("ADD", config, container)
    node.ok("CHECK", config, container)
    (rule,) = (line for line in rules(node) if " -p tcp " in line and f"{node.address(4)}:" in line)

    node.machine.do(node.host, f"iptables -t nat -D {rule.removeprefix('-A ')}")

    assert "host port 53/tcp" in node.machine.refused("portmap", "CHECK", config, container)["msg"]


def garbage(config: Json, *keep: str) -> Json:
    """Return the configuration of a GC that keeps these containers."""
    valid = [{"containerID": containerid, "ifname": "eth0"} for containerid in keep]
    return {**config, "cni.dev/valid-attachments": valid}


@pytest.mark.both_edges
@pytest.mark.parametrize("backend", BACKENDS)
def test_gc(node: Node, backend: str) -> None:
    """Dead attachments that are not listed go; listed and living ones stay."""
    netns = {cid: node.attach(cid) for cid in ("dead", "listed", "living")}
    for number, (cid, path) in enumerate(netns.items(), 80):
        config = node.config(port(number), containerid=cid, backend=backend)
        node.ok("ADD", config, path, containerid=cid)
    age(node)
    for cid in ("dead", "listed"):
        node.machine.end(netns[cid])

    with node.machine.process_in(netns["living"]):
        node.ok("GC", garbage(node.config(containerid="dead", backend=backend), "listed"))

    facts = "".join(path.read_text() for path in node.records())
    assert [cid for cid in netns if f'"{cid}"' in facts] == ["listed", "living"]
    if backend == "nftables":
        assert len(node.mapped()) == 2
    else:
        assert len([line for line in rules(node) if "multiport" in line]) == 2


def test_gc_of_lost_records(node: Node) -> None:
    """Elements of this network that no record tells of go, and those of others stay."""
    container = node.attach()
    node.ok("ADD", node.config(port(80)), container)
    table, host = TABLE, NetNS(node.host)
    for number, network in ((81, node.machine.name), (82, "other")):
        key = layout.key_at("tcp", number, None)
        data = bytes([10, 9, 0, 9, 0, 80, 0, 0])
        comment = f"portmap {network} lost eth0"
        nft_table.apply(host, [table.add_element("hostports4", key, data=data, comment=comment)])
    host.close()

    node.ok("GC", garbage(node.config(), "c1"))

    assert sorted(node.mapped()) == [
        f"portmap {node.machine.name} c1 eth0",
        "portmap other lost eth0",
    ]


@pytest.mark.both_edges
def test_status(node: Node) -> None:
    """STATUS succeeds where an ADD would."""
    bare = {"cniVersion": "1.1.0", "name": node.machine.name, "type": "portmap"}

    node.ok("STATUS", bare)
    node.ok("STATUS", {**bare, "backend": "iptables"})


@pytest.mark.without_engine(reason="patches this process")
def test_status_without_iptables(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """STATUS and ADD say what is missing."""
    monkeypatch.setattr("cni_common.kernel.iptables._PATH", "/nonexistent")
    bare = {"cniVersion": "1.1.0", "name": node.machine.name, "type": "portmap"}

    error = node.machine.refused("portmap", "STATUS", {**bare, "backend": "iptables"})

    assert error["code"] == 50
    assert '"backend": "nftables"' in error["msg"]


def test_status_without_a_place_for_records(node: Node) -> None:
    """STATUS fails when no record could be written."""
    Path(node.machine.state_dir).mkdir(exist_ok=True)
    Path(node.machine.state_dir, "attachments").write_text("")
    bare = {"cniVersion": "1.1.0", "name": node.machine.name, "type": "portmap"}

    assert node.machine.refused("portmap", "STATUS", bare)["code"] == 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_reference_has_left(node: Node, backend: str) -> None:
    """DEL removes what the Go plugin has made for the container, and for no other."""
    first, second = node.attach(), node.attach("c2")
    configs = [
        node.config(port(80), port(90, 90, "udp"), backend=backend, cniVersion="1.0.0"),
        node.config(port(81), containerid="c2", backend=backend, cniVersion="1.0.0"),
    ]
    for config in configs:
        config["prevResult"] = {**config["prevResult"], "cniVersion": "1.0.0"}
    node.machine.reference("portmap", "ADD", configs[0], first)
    node.machine.reference("portmap", "ADD", configs[1], second, containerid="c2")

    node.ok("DEL", configs[0], first)

    ruleset = json.dumps(node.machine.nft())
    assert node.address(4) not in ruleset
    assert node.address(6) not in ruleset
    with serving(second, "tcp", 80, ["0.0.0.0"]) as (server,):
        assert asks(node.outside, server, HOST4, 81) == OUTSIDE4


def test_flushed_ruleset_is_no_failure_of_del(node: Node) -> None:
    """DEL succeeds after a flush of the ruleset."""
    container = node.attach()
    node.ok("ADD", node.config(port(80), port(53, 53, "udp")), container)
    node.machine.do(node.host, "nft flush ruleset")

    node.ok("DEL", node.config(), container)

    assert node.records() == []
    assert node.machine.nft() == []


def test_conditions(node: Node) -> None:
    """Conditions narrow the ports of their network alone, and go with its last container."""
    first, second = node.attach(), node.attach("c2")
    narrow: Json = {
        "conditionsV4": ["ip", "saddr", "!=", OUTSIDE4],
        "conditionsV6": ["ip6", "hoplimit", "1"],
    }
    one = node.config(port(8080), **narrow)
    two = node.config(port(8081), containerid="c2")
    node.ok("ADD", one, first)
    node.ok("ADD", two, second, containerid="c2")
    node.ok("CHECK", one, first)

    with serving(first, "tcp", 80, ["0.0.0.0"]) as (c1,), serving(second, "tcp", 80) as (c2, _):
        assert asks(node.outside, c1, HOST4, 8080) == ""
        assert asks(node.host, c1, HOST4, 8080) == HOST4
        assert asks(node.outside, c2, HOST4, 8081) == OUTSIDE4

    node.ok("DEL", node.config(), first)
    node.ok("CHECK", two, second, containerid="c2")
    assert "hoplimit" not in node.machine.command(node.host, "nft", "list", "ruleset")
    node.ok("DEL", two, containerid="c2")
    assert node.machine.nft() == []


def test_conditions_outlive_the_ports_of_others(node: Node) -> None:
    """The last port without conditions takes nothing from a network that has some."""
    first, second = node.attach(), node.attach("c2")
    one = node.config(port(8080), conditionsV4=["ip", "saddr", OUTSIDE4], snat=False)
    two = node.config(port(8081), containerid="c2", snat=False)
    node.ok("ADD", one, first)
    node.ok("ADD", two, second, containerid="c2")

    node.ok("DEL", two, containerid="c2")

    with serving(first, "tcp", 80, ["0.0.0.0"]) as (c1,):
        assert asks(node.outside, c1, HOST4, 8080) == OUTSIDE4
    node.ok("DEL", one, first)
    assert node.machine.nft() == []


@pytest.mark.parametrize("command", ["DEL", "GC"])
def test_conditions_without_a_record(node: Node, command: str) -> None:
    """Ports of a network with conditions go without a record, too, and the conditions with them."""
    container = node.attach()
    config = node.config(port(8080), conditionsV4=["ip", "saddr", "!=", OUTSIDE4], masqAll=True)
    node.ok("ADD", config, container)
    for path in node.records():
        path.unlink()

    if command == "DEL":
        node.ok("DEL", config)
    else:
        node.ok("GC", garbage(config))

    assert "hostports4-" not in node.machine.command(node.host, "nft", "list", "ruleset")
    assert node.mapped() == {}


def test_conditions_that_nft_refuses(node: Node) -> None:
    """A condition that is none is refused with nft's words, and nothing is left."""
    container = node.attach()
    config = node.config(port(8080), conditionsV4=["ip", "nonsense"])

    error = node.machine.refused("portmap", "ADD", config, container)

    assert error["code"] == 7
    assert "nonsense" in error["msg"]
    assert (node.machine.nft(), node.records()) == ([], [])


@pytest.mark.without_engine(reason="stops in this process")
def test_conditions_whose_base_goes_and_comes_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ADD whose base one call removes, and another makes, while `nft` runs is not refused."""
    run, tries = iptables.run, []

    def crossed(netns: NetNS, words: Sequence[str], text: str) -> object:
        tries.append(words)
        if len(tries) > 2:
            return run(netns, words, text)
        node.machine.command(node.host, "nft", "delete", "table", "inet", "pycni")
        done = run(netns, words, text)
        nft_table.apply(netns, layout.LAYOUT.base(netns))
        return done

    container = node.attach()
    monkeypatch.setattr(iptables, "run", crossed)
    node.ok("ADD", node.config(port(8080), conditionsV4=["ip", "saddr", OUTSIDE4]), container)

    assert len(tries) == 3
    assert "hostports4-" in node.machine.command(node.host, "nft", "list", "ruleset")


@pytest.mark.parametrize("backends", [("iptables", "nftables"), ("nftables", "iptables")])
def test_a_flush_frees_no_port_for_the_other_backend(node: Node, backends: tuple[str, str]) -> None:
    """The records tell the owner of a port, also where its rules are gone and were others'."""
    first, second = node.attach(), node.attach("c2")
    held = node.config(port(8080), backend=backends[0])
    wanted = node.config(port(8080), containerid="c2", backend=backends[1])
    node.ok("ADD", held, first)
    node.machine.do(node.host, "nft flush ruleset")

    error = node.machine.refused("portmap", "ADD", wanted, second, containerid="c2")
    node.ok("DEL", held, first)

    assert f"is mapped for 'portmap {node.machine.name} c1 eth0'" in error["msg"]
    node.ok("ADD", wanted, second, containerid="c2")
    node.ok("DEL", wanted, second, containerid="c2")
    assert not Path(node.machine.state_dir, "hostports").exists()
