"""portmap: ports in a row are one element, and nobody has a port twice by it."""

from __future__ import annotations

import errno
import gc
import json
from typing import Any

import pytest

from cni_common.spec.request import Request
from plugins.portmap import layout, parts
from tests.faults.inprocess import Fault, faulty
from tests.kernel.ports import HOST4, HOST6, OUTSIDE4, OUTSIDE6, Node, port
from tests.machine import Json, Machine
from tests.sockets import asks, serving

FIRST, LAST = 10_000, 10_099


@pytest.fixture
def node(machine: Machine) -> Node:
    """Give a node."""
    return Node(machine)


def row(first: int = FIRST, last: int = LAST, protocol: str = "tcp", **keys: str) -> list[Json]:
    """Return a range as a runtime publishes it: a mapping for each port, whose number it keeps."""
    return [port(number, number, protocol, **keys) for number in range(first, last + 1)]


def elements(node: Node) -> dict[str, list[Any]]:
    """Return the keys of the elements of each map with ports."""
    return {
        entry["map"]["name"]: [key["elem"]["val"]["concat"] for key, _ in entry["map"]["elem"]]
        for entry in node.machine.nft()
        if entry.get("map", {}).get("elem") and entry["map"]["name"].startswith("hostports")
    }


@pytest.mark.both_edges
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_one_element(node: Node, protocol: str) -> None:
    """A range is one element of each family; its ends lead to the container, and no port beside."""
    container = node.attach()
    config = node.config(*row(protocol=protocol))

    node.ok("ADD", config, container)

    numbers = [protocol, {"range": [FIRST, LAST]}]
    assert elements(node) == {"hostports4-ranges": [numbers], "hostports6-ranges": [numbers]}
    for number in (FIRST, FIRST + 50, LAST):
        with serving(container, protocol, number) as (v4, v6):
            assert asks(node.outside, v4, HOST4, number) == OUTSIDE4
            assert asks(node.outside, v6, HOST6, number) == OUTSIDE6
            assert asks(node.host, v4, HOST4, number) == HOST4
    for number in (FIRST - 1, LAST + 1):
        with serving(container, protocol, number) as (v4, _):
            assert asks(node.outside, v4, HOST4, number) == ""
    node.ok("CHECK", config, container)
    node.ok("DEL", config, container)
    assert (node.machine.nft(), node.records()) == ([], [])


@pytest.mark.both_edges
def test_ten_thousand_ports(node: Node) -> None:
    """They are as many elements as one port, also in the record; DEL takes all back."""
    container = node.attach()
    config = node.config(*row(10_000, 20_000, "udp"))

    node.ok("ADD", config, container)

    assert [len(keys) for keys in elements(node).values()] == [1, 1]
    facts = json.loads(node.records()[0].read_text())
    assert len(facts["host-ports"]["elements"]) == 4  # with the container's addresses
    assert len(facts["connections"]["ranges"]) == 2
    node.ok("CHECK", config, container)
    node.ok("DEL", config, container)
    assert (node.machine.nft(), node.records()) == ([], [])


@pytest.mark.without_engine(reason="looks into this process")
def test_call_leaves_no_request_in_memory(node: Node) -> None:
    """A worker collects no garbage for a hundred requests, and each can be a megabyte."""
    one, two = node.attach(), node.attach("c2")
    ours = node.config(*row())
    theirs = node.config(*row(), containerid="c2")

    def requests() -> int:
        return sum(isinstance(one, Request) for one in gc.get_objects())

    gc.collect()
    before = requests()
    gc.disable()
    try:
        node.ok("ADD", ours, one)
        node.ok("CHECK", ours, one)
        node.machine.refused("portmap", "ADD", theirs, two, containerid="c2")
        node.ok("DEL", ours, one)
        after = requests()
    finally:
        gc.enable()

    assert after == before


def test_explain(node: Node) -> None:
    """`pycni explain` and CHECK have one line for each family of a range."""
    container = node.attach()
    config = node.config(*row())
    node.ok("ADD", config, container)
    (record,) = node.records()
    with node.machine.make_host() as host:
        known = host.records.peek(str(record))
        assert known is not None
        lines = [one.what for one in parts.LIFECYCLE.present(host, known) if one.present]

    for version in (4, 6):
        what = f"element for host ports {FIRST}-{LAST}/tcp (IPv{version})"
        assert f"{what} of map hostports{version}-ranges" in lines
    node.machine.do(node.host, "nft flush ruleset")
    message = node.machine.refused("portmap", "CHECK", config, container)["msg"]
    assert message.count(f"the element for host ports {FIRST}-{LAST}/tcp in map") == 2
    assert "host port " not in message


def test_rows_of_two_protocols(node: Node) -> None:
    """Where a list alternates between protocols, each of them has its range."""
    container = node.attach()
    both = zip(row(), row(protocol="udp"), strict=True)

    node.ok("ADD", node.config(*(one for pair in both for one in pair)), container)

    rows = [[protocol, {"range": [FIRST, LAST]}] for protocol in ("tcp", "udp")]
    assert elements(node)["hostports4-ranges"] == rows


def test_ports_that_change_their_numbers(node: Node) -> None:
    """A range with an offset, and a short one, are single ports."""
    container = node.attach()
    shifted = [port(FIRST + number, 80 + number) for number in range(20)]
    config = node.config(*shifted, *row(9_000, 9_003))

    node.ok("ADD", config, container)

    assert {name: len(keys) for name, keys in elements(node).items()} == {
        "hostports4": 24,
        "hostports6": 24,
    }
    with serving(container, "tcp", 99) as (v4, _):
        assert asks(node.outside, v4, HOST4, FIRST + 19) == OUTSIDE4
    node.ok("CHECK", config, container)
    node.ok("DEL", config, container)
    assert node.machine.nft() == []


def test_saved_ruleset(node: Node) -> None:
    """`nft` lists ranges as its own, and can load its list again."""
    container = node.attach()
    config = node.config(*row(), *row(protocol="udp", hostIP=HOST4), *row(5000, 5099, hostIP=HOST6))
    node.ok("ADD", config, container)
    before = node.machine.nft()

    listing = node.machine.command(node.host, "nft", "list", "ruleset")
    node.machine.command(node.host, "nft", "-f", "-", stdin=f"flush ruleset\n{listing}")

    assert node.machine.nft() == before
    node.ok("CHECK", config, container)
    node.ok("DEL", config, container)
    assert node.machine.nft() == []


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (row(hostIP="192.0.2.9"), [port(FIRST + 5, FIRST + 5)]),
        ([port(FIRST + 5, FIRST + 5, hostIP="192.0.2.9")], row()),
    ],
    ids=["range first", "port first"],
)
def test_precedence(node: Node, theirs: list[Json], ours: list[Json]) -> None:
    """A mapping of one address goes before one of all addresses, be it a range or a port."""
    node.machine.do(node.host, "ip addr add 192.0.2.9/24 dev uplink")
    one, two = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(*theirs), one)
    node.ok("ADD", node.config(*ours, containerid="c2"), two, containerid="c2")

    number = FIRST + 5
    with serving(one, "tcp", number) as (v4, _), serving(two, "tcp", number) as (other, _):
        assert asks(node.outside, v4, "192.0.2.9", number) == OUTSIDE4
        assert asks(node.outside, other, HOST4, number) == OUTSIDE4


OVERLAPS = {
    "port inside": (row(), [port(FIRST + 7)], f"host port {FIRST + 7}/tcp"),
    "around a port": ([port(FIRST + 7)], row(), f"host port {FIRST + 7}/tcp"),
    "the same": (row(), row(), f"host ports {FIRST}-{LAST}/tcp"),
    "around a range": (row(), row(9_000, 11_000), f"host ports {FIRST}-{LAST}/tcp"),
    "inside a range": (row(9_000, 11_000), row(), f"host ports {FIRST}-{LAST}/tcp"),
    "its last ports": (row(), row(LAST - 1, 11_000), f"host ports {LAST - 1}-{LAST}/tcp"),
    "at one address": (
        row(hostIP=HOST4),
        [port(LAST, hostIP=HOST4)],
        f"host port {LAST}/tcp of {HOST4}",
    ),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlap_with_a_living_container(node: Node, name: str) -> None:
    """Ports that another has are refused by their numbers and owner, and nothing changes."""
    theirs, ours, words = OVERLAPS[name]
    one, two = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(*theirs), one)
    before = node.machine.nft(), node.records()
    config = node.config(*ours, containerid="c2")

    error = node.machine.refused("portmap", "ADD", config, two, containerid="c2")

    owner = f"'portmap {node.machine.name} c1 eth0'"
    assert f"{words} is mapped for {owner}" in error["msg"]
    assert (node.machine.nft(), node.records()) == before
    node.ok("DEL", config, two, containerid="c2")
    assert (node.machine.nft(), node.records()) == before


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlap_with_a_dead_container(node: Node, name: str) -> None:
    """Ports of a container that is gone are taken over, and its late DEL takes nothing back."""
    theirs, ours, _ = OVERLAPS[name]
    one, two = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(*theirs), one)
    late = node.config()
    node.machine.end(one)
    config = node.config(*ours, containerid="c2")

    node.ok("ADD", config, two, containerid="c2")
    node.ok("DEL", late)

    number, target = ours[-1]["hostPort"], ours[-1]["containerPort"]
    if name == "around a port":
        number = target = FIRST + 7
    with serving(two, "tcp", target) as (v4, _):
        assert asks(node.outside, v4, HOST4, number) == OUTSIDE4
    node.ok("CHECK", config, two, containerid="c2")
    node.ok("DEL", config, two, containerid="c2")
    assert node.machine.nft() == []


def test_range_of_two_networks(node: Node) -> None:
    """A container's range leads to the network that asked first, then to the one that is left."""
    container = node.attach()
    node.attach(ifname="eth1", netns=container)
    configs = {name: node.config(*row(), ifname=name, snat=False) for name in ("eth0", "eth1")}
    for name, config in configs.items():
        node.ok("ADD", config, container, ifname=name)
    for name, config in configs.items():
        node.ok("CHECK", config, container, ifname=name)

    node.ok("DEL", configs["eth0"], container)

    node.ok("CHECK", configs["eth1"], container, ifname="eth1")
    with serving(container, "tcp", LAST, [node.address(4, ifname="eth1")]) as (server,):
        assert asks(node.outside, server, HOST4, LAST) == OUTSIDE4
    node.ok("DEL", configs["eth1"], container, ifname="eth1")
    assert (node.machine.nft(), node.records()) == ([], [])


@pytest.mark.parametrize("second", [row(), row(FIRST + 50, LAST + 50)], ids=["same", "other"])
def test_range_over_the_ports_of_the_same_container(node: Node, second: list[Json]) -> None:
    """Other ports of a second network are mapped beside those of the first, which stay."""
    container = node.attach()
    node.attach(ifname="eth1", netns=container)
    one = node.config(*row(), snat=False)
    two = node.config(*second, port(FIRST - 1), ifname="eth1", snat=False)
    node.ok("ADD", one, container)
    node.ok("ADD", two, container, ifname="eth1")
    node.ok("CHECK", one, container)
    node.ok("CHECK", two, container, ifname="eth1")

    node.ok("DEL", one, container)

    node.ok("CHECK", two, container, ifname="eth1")
    last = second[-1]["hostPort"]
    with serving(container, "tcp", last, [node.address(4, ifname="eth1")]) as (server,):
        assert asks(node.outside, server, HOST4, last) == OUTSIDE4
    node.ok("DEL", two, container, ifname="eth1")
    assert (node.machine.nft(), node.records()) == ([], [])


@pytest.mark.without_engine(reason="patches this process")
def test_ports_of_an_earlier_release(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attachment whose ports are single elements is checked, defended and removed as it is."""
    one, two = node.attach(), node.attach("c2")
    config = node.config(*row())
    with monkeypatch.context() as patch:
        patch.setattr(layout, "RANGE_PORTS_MIN", 1 << 16)
        node.ok("ADD", config, one)
    assert [len(keys) for keys in elements(node).values()] == [100, 100]

    node.ok("CHECK", config, one)
    ours = node.config(*row(LAST, LAST + 50), containerid="c2")
    error = node.machine.refused("portmap", "ADD", ours, two, containerid="c2")
    assert f"host port {LAST}/tcp is mapped for" in error["msg"]
    node.ok("DEL", config, one)

    assert node.machine.nft() == []


@pytest.mark.without_engine(reason="fails in this process")
def test_kernel_without_ranges(node: Node) -> None:
    """Where the kernel refuses maps of ranges, each port is an element."""
    container = node.attach()
    config = node.config(*row(), snat=False)
    node.ok("ADD", node.config(port(9), snat=False), container)  # the base is there
    node.ok("DEL", node.config(), container)
    fault = Fault(
        1, only=lambda what: "add rule to 'hostport_conditions'" in what, code=errno.EINVAL
    )
    with faulty(node.machine, fault) as host:
        node.ok("ADD", config, container, host=host)

    assert fault.happened
    assert [len(keys) for keys in elements(node).values()] == [100, 100]
    node.ok("CHECK", config, container)
    node.ok("DEL", config, container)
    assert (node.machine.nft(), node.records()) == ([], [])


def test_conditions(node: Node) -> None:
    """Ports in a row of a network with conditions meet these, and go before other networks'."""
    one, two = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(*row()), one)
    narrow = node.config(*row(), containerid="c2", conditionsV4=["ip", "saddr", OUTSIDE4])
    node.ok("ADD", narrow, two, containerid="c2")

    with serving(one, "tcp", LAST) as (first, _), serving(two, "tcp", LAST) as (second, _):
        assert asks(node.outside, second, HOST4, LAST) == OUTSIDE4
        assert asks(node.host, first, HOST4, LAST) == HOST4
    node.ok("DEL", narrow, two, containerid="c2")
    node.ok("DEL", node.config(), one)
    assert node.machine.nft() == []


def test_gc_of_a_range_without_a_record(node: Node) -> None:
    """Elements that no record tells of go, and the maps of ranges with them."""
    container = node.attach()
    config = node.config(*row())
    node.ok("ADD", config, container)
    for path in node.records():
        path.unlink()

    node.ok("GC", {**config, "cni.dev/valid-attachments": []})

    assert elements(node) == {}
    assert "ranges" not in node.machine.command(node.host, "nft", "list", "ruleset")


def test_del_of_a_range_without_a_record(node: Node) -> None:
    """When the record is lost, what runtimeConfig and prevResult tell is enough."""
    container = node.attach()
    config = node.config(*row())
    node.ok("ADD", config, container)
    for path in node.records():
        path.unlink()

    node.ok("DEL", config, container)

    assert node.machine.nft() == []
