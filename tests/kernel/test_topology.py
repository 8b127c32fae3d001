"""`pycni topology` on a node with every way in which containers are joined."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import pytest

from commands import DONE
from tests.kernel.ports import Node, port
from tests.kernel.test_commands import asked, pycni
from tests.machine import Json, Machine

pytestmark = [
    pytest.mark.without_engine("the commands know nothing of it"),
    pytest.mark.timeout(120),
]
POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME="
SVG = "{http://www.w3.org/2000/svg}"


class Populated:
    """A node with a bridge whose containers have ports, and one of each other kind."""

    def __init__(self, machine: Machine, stack: ExitStack, on_bridge: int = 2) -> None:
        self.machine, self.node, self.stack = machine, Node(machine), stack
        for number in range(on_bridge):
            containerid = f"{number:064x}"
            netns = self.node.attach(containerid, ipMasq=True)
            stack.enter_context(machine.process_in(netns))
            keys = {"args": f"{POD}web-{number}", "containerid": containerid}
            conf = self.node.config(port(8080 + number), containerid=containerid)
            self.node.ok("ADD", conf, netns, **keys)

    def add(self, kind: str, containerid: str, subnet: str, **keys: object) -> None:
        """Attach a container by a plugin of another kind."""
        netns = self.machine.container()
        self.stack.enter_context(self.machine.process_in(netns))
        ipam = {"type": "host-local", "dataDir": self.machine.data_dir}
        ipam |= {"ranges": [[{"subnet": subnet}]]}  # type: ignore[dict-item]
        conf = {"cniVersion": "1.1.0", "name": f"of-{kind}", "type": kind, "ipam": ipam, **keys}
        self.machine.ok(kind, "ADD", conf, netns, containerid=containerid)


@pytest.fixture
def populated(machine: Machine) -> Iterator[Populated]:
    """A node that has all kinds."""
    with ExitStack() as stack:
        found = Populated(machine, stack)
        machine.do(
            machine.host,
            "ip link add name second type veth peer name other",
            "ip link set second master br0 up",
            "ip route add default via 192.0.2.2",
        )
        found.add("ptp", "ptp1", "10.77.1.0/24")
        found.add("macvlan", "mac1", "10.77.2.0/24", master="uplink")
        yield found


def groups(found: Json) -> dict[str, Json]:
    """Return the groups of a picture by their names."""
    return {one["name"]: one for one in found["groups"]}


def test_all_is_where_it_belongs(populated: Populated) -> None:
    """Each container is in the group that joins it, with its end, addresses, NAT and ports."""
    machine = populated.machine

    found = asked(machine, "topology")

    shown = groups(found)
    assert found["unread"] == []
    assert list(shown) == ["br0", "uplink", "routed by the host"]
    assert [one["name"] for one in found["uplinks"]] == ["uplink"]
    assert "192.0.2.1/24" in found["uplinks"][0]["details"]
    assert "default via 192.0.2.2" in found["uplinks"][0]["details"]
    bridge = shown["br0"]
    assert (bridge["kind"], bridge["networks"]) == ("bridge", [machine.name])
    assert "10.9.0.1/24" in bridge["details"]
    assert bridge["ports"] == ["second"]
    first, second = bridge["cards"]
    assert (first["pod"], second["pod"]) == ("shop/web-0", "shop/web-1")
    assert first["end"] in machine.ports()
    address = populated.node.address(4, first["containerid"])
    assert f"{address}/24" in first["addresses"]
    address6 = populated.node.address(6, first["containerid"])
    assert first["uses"] == [
        f"masquerade {address}, {address6}",
        f"host-port 8080/tcp to {address}:80, 8080/tcp to [{address6}]:80",
    ]
    kinds = {name: [card["kind"] for card in one["cards"]] for name, one in shown.items()}
    assert kinds["uplink"] == ["macvlan"]
    assert kinds["routed by the host"] == ["veth"]


@pytest.mark.full_kernel
def test_vlans(machine: Machine) -> None:
    """A VLAN is shown with the interface that it is of; one that leads nowhere is shown as such."""
    with ExitStack() as stack:
        populated = Populated(machine, stack, 0)
        populated.node.attach()
        populated.add("dummy", "dum1", "10.77.3.0/24")
        machine.do(
            machine.host,
            "ip link add link uplink name uplink.7 type vlan id 7",
            "ip link set uplink.7 master br0 up",
        )

        shown = groups(asked(machine, "topology"))

    assert shown["br0"]["ports"] == ["uplink.7 (VLAN 7 of uplink)"]
    (card,) = shown["without a way to the host"]["cards"]
    assert (card["containerid"], card["kind"]) == ("dum1", "dummy")


@pytest.mark.full_kernel
def test_port_in_a_vlan(machine: Machine) -> None:
    """The VLANs of a port of a bridge that filters them stand on its card."""
    node = Node(machine)
    node.attach(vlan=5)
    node.attach("c2", vlanTrunk=[{"minID": 7, "maxID": 8}])

    (group,) = asked(machine, "topology")["groups"]

    vlans = {card["containerid"]: card["vlans"] for card in group["cards"]}
    assert vlans == {"c1": ["5 untagged"], "c2": ["1 untagged", "7", "8"]}
    assert "VLAN 5 untagged" in pycni(machine, "topology").stdout


def test_text(populated: Populated) -> None:
    """The tree fits, has each container once, and cuts nothing that one must copy."""
    done = pycni(populated.machine, "topology")

    assert (done.returncode, done.stderr) == (DONE, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].endswith(": 4 containers")
    found = asked(populated.machine, "topology")
    for group in found["groups"]:
        for card in group["cards"]:
            for word in (card["end"], card["pod"] or card["containerid"], *card["addresses"]):
                assert done.stdout.count(word) >= 1, word


def test_svg(populated: Populated, tmp_path: Path) -> None:
    """The file is SVG in which no text leaves its box, and no box another's."""
    path = tmp_path / "node.svg"

    done = pycni(populated.machine, "topology", "--svg", str(path))

    assert (done.returncode, done.stdout) == (DONE, "")
    root = ElementTree.fromstring(path.read_text())
    texts = [one.text or "" for one in root.iter(f"{SVG}text")]
    for word in ("shop/web-0", "bridge br0", "veth uplink", "routed by the host"):
        assert any(word in text for text in texts), word
    assert pycni(populated.machine, "topology", "--svg", "-").stdout == path.read_text()
    assert joins(root) == 3
    assert "group gone" not in {one.get("class") for one in root.iter(f"{SVG}rect")}
    is_tidy(root)


def joins(root: ElementTree.Element) -> int:
    """Return the number of lines that end at a frame: what is in it has a way to the host."""
    lines = [one.get("d") or "" for one in root.iter(f"{SVG}path")]
    return sum(" H" in one for one in lines)


def is_tidy(root: ElementTree.Element) -> None:
    """Assert that boxes are inside of each other or apart, and each text inside of one."""
    boxes = [
        tuple(float(one.get(key, 0)) for key in ("x", "y", "width", "height"))
        for one in root.iter(f"{SVG}rect")
        if one.get("class") != "plug"
    ]
    for one in boxes:
        for other in boxes:
            x, y, width, height = one
            u, v, across, down = other
            apart = x + width <= u or u + across <= x or y + height <= v or v + down <= y
            inside = u <= x and v <= y and x + width <= u + across and y + height <= v + down
            around = x <= u and y <= v and u + across <= x + width and v + down <= y + height
            assert apart or inside or around, (one, other)
    for text in root.iter(f"{SVG}text"):
        x, y = float(text.get("x", 0)), float(text.get("y", 0))
        right = x + 7.2 * len(text.text or "")
        assert any(
            u <= x and right <= u + across and v < y < v + down for u, v, across, down in boxes[1:]
        ), text.text


def test_sixty(machine: Machine) -> None:
    """A node with 60 containers has as many cards, in a picture that is not wider."""
    with ExitStack() as stack:
        populated = Populated(machine, stack, 60)
        drawn = pycni(populated.machine, "topology", "--svg", "-").stdout

    root = ElementTree.fromstring(drawn)
    cards = [one for one in root.iter(f"{SVG}rect") if one.get("class") == "card"]
    assert len(cards) == 60
    assert float(root.get("width", 0)) < 1200
    is_tidy(root)


def test_diagrams(populated: Populated) -> None:
    """Graphviz' and Mermaid's text have a box for each container and a line for each interface."""
    dot = pycni(populated.machine, "topology", "--dot").stdout
    assert dot.startswith("graph containers {\n")
    assert dot.rstrip().endswith("}")
    assert len(re.findall(r"^  container\d+ \[", dot, re.M)) == 4
    assert len(re.findall(r"^  group\d+ -- container\d+ \[", dot, re.M)) == 4
    flow = pycni(populated.machine, "topology", "--mermaid").stdout
    assert flow.startswith("flowchart LR\n")
    assert len(re.findall(r"^  container\d+\(", flow, re.M)) == 4
    assert len(re.findall(r"^  group\d+ ---\|", flow, re.M)) == 4


def test_odd_names(machine: Machine) -> None:
    """With any name of pods and interfaces each line of a picture is one, and harmless."""
    odd = 'a"b<i>&\\\n\x1b[31m\x9b\u202e\u2028\x85\t|]'
    node = Node(machine)
    netns = machine.container()
    with machine.process_in(netns):
        machine.ok("bridge", "ADD", node.network(), netns, args=f"{POD}{odd}")
        name = 'p"<\x1b[1m&'
        line = ("ip", "link", "add", "name", name, "type", "bridge")
        machine.command(machine.host, *line)
        texts = {
            form: pycni(machine, "topology", *form.split()).stdout
            for form in ("", "--dot", "--mermaid", "--svg -", "--json")
        }

    for form, text in texts.items():
        assert [one for one in text if not one.isprintable() and one != "\n"] == [], form
    (shown,) = [line for line in texts["--dot"].splitlines() if line.startswith("  container0 [")]
    assert shown.startswith('  container0 [label="shop/a\\"b<i>&')
    assert shown.endswith("];")
    (shown,) = [
        line for line in texts["--mermaid"].splitlines() if line.startswith("  container0(")
    ]
    assert shown.startswith('  container0("shop/a#quot;b#lt;i#gt;#amp;')
    ElementTree.fromstring(texts["--svg -"])
    groups = {one["name"]: one for one in json.loads(texts["--json"])["groups"]}
    assert groups[name]["cards"] == []


def test_nothing(machine: Machine) -> None:
    """A node without containers is a picture, too."""
    done = pycni(machine, "topology")

    assert (done.returncode, done.stderr) == (DONE, "")
    assert done.stdout.splitlines()[0].endswith(": 0 containers")
    ElementTree.fromstring(pycni(machine, "topology", "--svg", "-").stdout)
    assert json.loads(pycni(machine, "topology", "--json").stdout)["groups"] == []


def test_a_dead_container(machine: Machine) -> None:
    """A container that is gone is shown as such."""
    node = Node(machine)
    netns = node.attach()
    machine.end(netns)

    (card,) = groups(asked(machine, "topology"))["gone"]["cards"]

    assert (card["containerid"], card["addresses"]) == ("c1", [])
    drawn = ElementTree.fromstring(pycni(machine, "topology", "--svg", "-").stdout)
    frames = {one.get("class") for one in drawn.iter(f"{SVG}rect")}
    assert {"group gone", "card gone"} <= frames
    assert joins(drawn) == len(groups(asked(machine, "topology"))) - 1
