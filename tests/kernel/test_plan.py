"""`pycni plan`: an ADD and its DEL for real, of which nothing reaches the node."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni_common.node.host import Host
from cni_common.serve.protocol import execute
from commands import DONE, FAILED, FOUND
from commands.plan import run
from commands.verb import log
from tests.kernel import forked
from tests.kernel.ports import Node, port
from tests.machine import CNI_BIN, Json, Machine, files_below
from tests.scope import ALL, one_in
from tests.waits import wait_until

if TYPE_CHECKING:
    from cni_common.node.host import Loader

ROOT = Path(__file__).resolve().parents[2]
CONF = {path.name: path for path in sorted((ROOT / "conf").glob("*.conf*"))}
PORT = json.dumps({"portMappings": [{"hostPort": 8080, "containerPort": 80}]})
pytestmark = [
    pytest.mark.without_engine("the commands know nothing of it"),
    # Of one process: some have records in /run/pycni, and no other must see these change. The
    # group is that of test_portmap.py, with the same addresses.
]


def plan(machine: Machine, *words: str, status: int = DONE) -> Json:
    """Return the JSON of a plan, whose exit status is as expected; the node stays as it was."""
    before = _node(machine)
    done = forked.pycni(machine.host, "plan", "--path", str(CNI_BIN), "--json", *words)
    assert (done.returncode, done.stderr) == (status, ""), done.stdout + done.stderr
    assert _node(machine) == before
    found: Json = json.loads(done.stdout)
    return found


def _node(machine: Machine) -> list[Any]:
    """Return what a plan could have changed."""
    links = json.loads(machine.command(machine.host, "ip", "-j", "address"))
    known = [
        (
            one["ifname"],
            one.get("master"),
            sorted(ip["local"] for ip in one["addr_info"] if ip["scope"] != "link"),
        )  # the kernel makes those by itself, later
        for one in links
    ]
    commands = ("nft list ruleset", "sysctl net.ipv4.ip_forward", "ip route")
    printed = [machine.command(machine.host, *text.split()) for text in commands]
    places = ("/run/netns", "/run/pycni/attachments", "/run/plan")
    return [
        sorted(known, key=str),
        *printed,
        *(sorted(os.listdir(one)) if os.path.isdir(one) else [] for one in places),
        sorted(path for path in files_below("/var/lib/cni") if not path.endswith("/lock")),
    ]


def changes(step: Json, kind: str, where: str = "host") -> list[str]:
    """Return what a step makes of one kind."""
    found = step["changes"]
    return [one["what"] for one in found if (one["kind"], one["where"]) == (kind, where)]


def test_steps(machine: Machine) -> None:
    """Each plugin's step has its own changes, the result is that of the last, DEL cleans up."""
    found = plan(machine, str(CONF["55-portmap.conflist"]), "--capabilities", PORT)

    bridge, portmap = found["steps"]
    assert (bridge["plugin"], portmap["plugin"]) == ("bridge", "portmap")
    assert [text.partition(",")[0] for text in changes(bridge, "link", "container")] == [
        "eth0: veth"
    ]
    assert "10.55.0.1/24 of cni55" in changes(bridge, "address")
    assert "10.55.0.2/24 of eth0" in changes(bridge, "address", "container")
    assert "to 0.0.0.0/0 via 10.55.0.1 over eth0" in changes(bridge, "route", "container")
    assert "/var/lib/cni/networks/portmap/10.55.0.2" in changes(bridge, "file")
    forward = {"where": "host", "kind": "sysctl", "what": "net/ipv4/ip_forward", "change": "0 -> 1"}
    assert forward in bridge["changes"]
    assert "masquerade" in bridge["nft"][0]
    assert "hostports4" not in bridge["nft"][0]
    assert "tcp . 8080" in portmap["nft"][0]
    assert changes(portmap, "link") == changes(portmap, "address") == []
    assert found["result"]["ips"][0]["address"] == "10.55.0.2/24"
    left = {one["what"].partition(":")[0] for one in found["left"] if one["kind"] == "link"}
    assert left == {"cni55"}
    assert not [one for one in found["left"] if "10.55.0.2" in one["what"]]
    assert found["leftTables"] == []


def test_text(machine: Machine) -> None:
    """The same in words, with the rules as nft lists them."""
    words = ["plan", "--path", str(CNI_BIN), str(CONF["55-portmap.conflist"])]

    done = forked.pycni(machine.host, *words)

    assert (done.returncode, done.stderr) == (DONE, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("network portmap of ")
    assert "1. ADD of bridge" in lines
    assert "   host       address  10.55.0.1/24 of cni55" in lines
    assert "   table inet pycni {" in lines
    assert "     chain postrouting {" in lines
    assert "DEL takes all of it away but" in lines


def test_refused(machine: Machine, tmp_path: Path) -> None:
    """A plugin's refusal is the answer, with what was done until then."""
    path = tmp_path / "10-a.conflist"
    bridge = machine.network(isGateway=True, ipam={"type": "host-local", "subnet": "10.8.0.0/24"})
    tuning = {"type": "tuning", "sysctl": {"net.ipv4.no_such_key": "1"}}
    top = {"cniVersion": "1.0.0", "name": "a"}
    path.write_text(json.dumps({**top, "plugins": [{**bridge, **top}, tuning]}))

    found = plan(machine, str(path), status=FOUND)

    assert found["error"].startswith("tuning: ")
    assert "no_such_key" in found["error"]
    assert [bool(step["error"]) for step in found["steps"]] == [False, True]
    assert found["result"] is None


def test_refused_against_node(machine: Machine) -> None:
    """The objects that the node has stand below a refusal, too."""
    machine.do(machine.host, "ip link add cni20 type veth peer name other0")
    words = ["plan", "--path", str(CNI_BIN), "--against-node", str(CONF["20-ipv4.conflist"])]

    done = forked.pycni(machine.host, *words)

    assert (done.returncode, done.stderr) == (FOUND, "")
    _, _, text = done.stdout.partition("\non this node\n")
    assert "   link     cni20: " in text
    assert "\n   plugin   bridge: " in text


def test_arguments(machine: Machine) -> None:
    """CNI_ARGS, capabilities, names of container and interface."""
    found = plan(
        machine,
        str(CONF["27-capabilities.conflist"]),
        *(
            "--args",
            "IgnoreUnknown=1;IP=10.27.0.9",
            "--capabilities",
            '{"mac": "02:00:00:00:00:07"}',
        ),
        *("--container", "abc", "--interface", "net1"),
    )

    (step,) = found["steps"]
    assert changes(step, "address", "container") == ["10.27.0.9/24 of net1"]
    assert changes(step, "link", "container") == ["net1: veth, 02:00:00:00:00:07, MTU 1500, up"]
    assert any(one.startswith("/run/pycni/attachments/") for one in changes(step, "file"))


def test_against_node(machine: Machine, tmp_path: Path) -> None:
    """Objects that the node has are told from those that would be made, and refusals are named."""
    machine.do(machine.host, "ip link add cni20 type bridge", "ip link set cni20 up")

    found = plan(machine, str(CONF["20-ipv4.conflist"]), "--against-node")

    states = {one["what"].partition(":")[0]: one["state"] for one in found["node"]}
    assert states["cni20"].startswith("exists, as bridge")
    assert states["10.20.0.1/24 of cni20"] == "would be made"
    assert states["net/ipv4/ip_forward"] == "is 0, would be 1"

    machine.do(machine.host, "ip link del cni20", "ip link add cni20 type veth peer name other0")
    refused = plan(machine, str(CONF["20-ipv4.conflist"]), "--against-node", status=FOUND)

    assert [one["what"] for one in refused["node"] if one["kind"] == "plugin"] == ["bridge"]


class Inhabited:
    """A node with a container c1, which has an address and a host port, and their network."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.node = Node(machine)
        self.netns = self.node.attach()
        self.node.ok("ADD", self.node.config(port(8080)), self.netns)
        self.path = directory / "10-a.conflist"
        top = {"cniVersion": "1.0.0", "name": machine.name}
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        plugins = [{**self.node.network(), **top}, portmap]
        self.path.write_text(json.dumps({**top, "plugins": plugins}))

    def plan(self, *words: str, status: int) -> Json:
        """Return the plan against the node."""
        return plan(self.node.machine, str(self.path), "--against-node", *words, status=status)


@pytest.fixture
def inhabited(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inhabited:
    """A node whose container has nothing but its namespace: no process is in that."""

    def here(load: Loader) -> Host:
        program = str(CNI_BIN / "pycni")
        return Host(load, program, log, execute=execute, state_dir=machine.state_dir)

    monkeypatch.setattr(run, "this_node", here)
    return Inhabited(machine, tmp_path)


class TestAgainstContainers:
    """The plugins refuse what living containers have, and the status says so."""

    @pytest.mark.parametrize(
        ("mapping", "status"),
        [
            (port(8080), FOUND),
            (port(8081), DONE),
            (port(8080, protocol="udp"), DONE),
        ],
    )
    def test_host_port(self, inhabited: Inhabited, mapping: Json, status: int) -> None:
        """Protocol and number decide."""
        wanted = json.dumps({"portMappings": [mapping]})

        found = inhabited.plan("--capabilities", wanted, status=status)

        assert ("host port 8080/tcp is mapped for" in found["error"]) == (status == FOUND)
        assert ("which is alive" in found["error"]) == (status == FOUND)

    def test_address(self, inhabited: Inhabited) -> None:
        """An address that is asked for is refused; else the ADD gets the next one."""
        taken = inhabited.node.address(4)
        words = ("--args", f"IgnoreUnknown=1;IP={taken}")

        refused = inhabited.plan(*words, status=FOUND)
        free = inhabited.plan(status=DONE)
        alone = plan(inhabited.node.machine, str(inhabited.path), *words)

        assert f"requested IP address {taken} is not available" in refused["error"]
        assert "c1/eth0" in refused["error"]
        assert taken not in free["result"]["ips"][0]["address"]
        assert alone["result"]["ips"][0]["address"] == f"{taken}/24"

    def test_a_dead_container(self, inhabited: Inhabited) -> None:
        """Its ports can be had."""
        machine = inhabited.node.machine
        machine.forget(inhabited.netns)
        # The bridge loses its carrier with its port, and the route tells, some time later.
        routes = ("ip", "route", "show", "dev", "br0")
        wait_until(
            lambda: "linkdown" in machine.command(machine.host, *routes), "the pair is still there"
        )
        wanted = json.dumps({"portMappings": [port(8080)]})

        found = inhabited.plan("--capabilities", wanted, status=DONE)

        assert found["error"] == ""

    def test_the_container_itself(self, inhabited: Inhabited) -> None:
        """A second ADD of a living attachment; an entry that is no file is no record."""
        os.mkfifo(Path(inhabited.node.machine.state_dir, "attachments", "odd"))

        found = inhabited.plan("--container", "c1", status=FOUND)
        other = inhabited.plan("--container", "c1", "--interface", "net1", status=DONE)

        (line,) = (one for one in found["node"] if one["kind"] == "container")
        assert line["what"] == "c1"
        assert "would be refused" in line["state"]
        assert [one for one in other["node"] if one["kind"] == "container"] == []


def test_uplink(machine: Machine) -> None:
    """An interface that a configuration names is there, with its addresses, and stays."""
    machine.do(
        machine.host,
        "ip link add up0 type veth peer name up1",
        "ip link set up0 up",
        "ip link set up1 up",
        "ip address add 192.0.2.2/24 dev up0",
    )

    macvlan = plan(machine, str(CONF["52-macvlan.conflist"]))
    lent = plan(machine, str(CONF["48-host-device.conflist"]))

    assert changes(macvlan["steps"][0], "link", "container")[0].startswith("eth0: macvlan")
    assert {"192.0.2.2/24 of up0"} == {
        one["what"]
        for one in lent["steps"][0]["changes"]
        if one["kind"] == "address" and (one["where"], one["change"]) == ("host", "removed")
    }


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("46-dhcp.conflist", ["198.51.100.2/24"]),
        ("47-dhcp-dual-stack.conflist", ["198.51.100.2/24", "2001:db8::2/64"]),
    ],
)
def test_addresses_of_a_server(machine: Machine, name: str, addresses: list[str]) -> None:
    """Examples stand for them; the node's daemon, which is not there, is what STATUS tells."""
    machine.do(
        machine.host,
        "ip link add up0 type veth peer name up1",
        "ip link set up0 up",
        "ip link set up1 up",
    )

    found = plan(machine, str(CONF[name]))
    here = plan(machine, str(CONF[name]), "--against-node", status=FOUND)

    assert [one["address"] for one in found["result"]["ips"]] == addresses
    assert changes(found["steps"][0], "link", "container")[0].startswith("eth0: macvlan")
    (message,) = found["messages"]
    assert message.startswith("dhcp gets its addresses from beyond this node")
    assert all(address in message for address in addresses)
    (status,) = (one for one in here["node"] if one["kind"] == "plugin")
    assert "no DHCP daemon answers" in status["state"]


def test_other_vendor(machine: Machine, tmp_path: Path) -> None:
    """A plugin of another vendor is executed on the stage, too."""
    (tmp_path / "theirs").write_text(
        '#!/bin/sh\n[ $CNI_COMMAND = DEL ] || echo \'{"cniVersion": "1.0.0", "interfaces": []}\'\n'
        "[ $CNI_COMMAND = DEL ] || ip link add theirs0 type bridge\n"
    )
    (tmp_path / "theirs").chmod(0o755)
    path = tmp_path / "10-a.conflist"
    content = {"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "theirs"}]}
    path.write_text(json.dumps(content))

    found = plan(machine, "--path", str(tmp_path), str(path))

    assert [text.partition(",")[0] for text in changes(found["steps"][0], "link")] == [
        "theirs0: bridge"
    ]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["no-such.conflist"], "no-such.conflist"),
        ([str(CONF["20-ipv4.conflist"]), "--capabilities", "{"], "--capabilities"),
        ([str(CONF["20-ipv4.conflist"]), "--capabilities", "[]"], "--capabilities"),
    ],
)
def test_cannot(machine: Machine, words: list[str], text: str) -> None:
    """A configuration that cannot be tried is refused in one line."""
    done = forked.pycni(machine.host, "plan", *words)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (FAILED, "", 1)
    assert text in done.stderr


@pytest.mark.parametrize("name", CONF if ALL else sorted(one_in(8, list(CONF))))
def test_examples(machine: Machine, name: str) -> None:
    """Each example of conf/ can be planned, or is refused for what this kernel lacks."""
    machine.do(machine.host, "ip link add up0 type veth peer name up1", "ip link set up0 up")

    done = forked.pycni(machine.host, "plan", "--path", str(CNI_BIN), "--json", str(CONF[name]))

    assert done.returncode in (DONE, FOUND), done.stderr
    found = json.loads(done.stdout)
    lacking = ("this kernel", "no IP ranges", "daemon", "module")
    assert not found["error"] or any(text in found["error"] for text in lacking), found["error"]
