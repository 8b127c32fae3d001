"""Our plugins and the Go reference plugins on one node: each deletes, checks and calls the other's.

A node is upgraded, or downgraded, under running containers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.node import NODE4, OUTSIDE4, Done, Node, network
from tests.machine import REFERENCE_BIN, Json

NET4, NET6 = "10.81.0.0/24", "fd00:81::/64"
CONTAINER = "/run/netns/c1"
# Objects that the reference leaves for good: a table, chains and rules that name no container.
REFERENCE_FRAME = ("cni_plugins_masquerade", '"family": "bridge", "name": "nat"', "PREROUTING")


def config(version: str = "1.1.0", **keys: Any) -> Json:
    """Return a dual-stack network with masquerading, as the only plugin of its list."""
    listed = network(version, [NET4, NET6], **keys)
    return {"cniVersion": version, "name": listed["name"], **listed["plugins"][0]}


def call(node: Node, bin_dir: Path, command: str, settings: Json, *, path: str = "") -> Done:
    """Run one command of the bridge in `bin_dir`, which must succeed."""
    path = path or str(bin_dir)
    done = node.execute("bridge", command, settings, CONTAINER, bin_dir=str(bin_dir), path=path)
    assert done.returncode == 0, f"{bin_dir.name} {command}: {done.stdout}"
    return done


def add(node: Node, bin_dir: Path, settings: Json, *, path: str = "") -> Json:
    """Return the result of an ADD in a new container."""
    node.container("c1")
    result: Json = json.loads(call(node, bin_dir, "ADD", settings, path=path).stdout)
    return result


def own_traces(node: Node) -> dict[str, Any]:
    """Return what is left of attachments, less the reference's frame."""
    traces = node.traces("br0")
    lines = traces.pop("firewall", [])
    named = [line for line in lines if not any(frame in line for frame in REFERENCE_FRAME)]
    rules = [line for line in lines if "masq_checks" in line and "saddr" in line]
    return traces | ({"firewall": named + rules} if named + rules else {})


KINDS: dict[str, Json] = {
    "masquerade-iptables": {"ipMasqBackend": "iptables"},
    "masquerade-nftables": {"ipMasqBackend": "nftables"},
    "mac-filter": {"ipMasq": False, "macspoofchk": True},
}


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.1.0"])
@pytest.mark.parametrize("kind", KINDS)
def test_reference_adds_ours_deletes(node: Node, kind: str, version: str) -> None:
    """DEL removes the interface, rules and leases that the Go plugin has made."""
    settings = config(version, **KINDS[kind])
    result = add(node, REFERENCE_BIN, settings)
    cached = {"prevResult": result} if version >= "0.4.0" else {}

    call(node, node.bin_dir, "DEL", {**settings, **cached})

    assert own_traces(node) == {}
    assert node.links(CONTAINER) == ["lo"]


@pytest.mark.parametrize("kind", KINDS)
def test_reference_adds_ours_deletes_when_the_namespace_is_gone(node: Node, kind: str) -> None:
    """The same with nothing but prevResult to go by, where the Go plugin leaves its rules."""
    settings = config(**KINDS[kind])
    result = add(node, REFERENCE_BIN, settings)
    node.delete_container("c1")

    call(node, node.bin_dir, "DEL", {**settings, "prevResult": result})

    for _ in range(1000):  # the pair goes with the namespace, in the kernel's own time
        if "links" not in own_traces(node):
            break
        time.sleep(0.01)
    assert own_traces(node) == {}


@pytest.mark.parametrize("version", ["0.4.0", "1.1.0"])
@pytest.mark.parametrize("settings", [{"ipMasq": False}, {"ipMasqBackend": "iptables"}])
def test_ours_checks_only_what_is_there(node: Node, settings: Json, version: str) -> None:
    """CHECK of the Go plugin's work passes, or names masquerading that is laid out otherwise."""
    whole = config(version, **settings)
    result = add(node, REFERENCE_BIN, whole)

    done = node.execute("bridge", "CHECK", {**whole, "prevResult": result}, CONTAINER)

    assert (done.returncode == 0) == (settings == {"ipMasq": False}), done.stdout
    assert done.returncode == 0 or "CNI-" in json.loads(done.stdout)["msg"]


@pytest.mark.parametrize("version", ["0.4.0", "1.1.0"])
@pytest.mark.parametrize("kind", KINDS)
def test_ours_adds_reference_checks(node: Node, kind: str, version: str) -> None:
    """The Go plugin finds nothing wrong with our work, and understands our result."""
    settings = config(version, **KINDS[kind])
    result = add(node, node.bin_dir, settings)

    call(node, REFERENCE_BIN, "CHECK", {**settings, "prevResult": result})


@pytest.mark.parametrize("version", ["0.3.1", "1.1.0"])
def test_ours_adds_reference_deletes(node: Node, version: str) -> None:
    """The Go plugin removes interface and leases; our next ADD of the attachment succeeds."""
    settings = config(version)
    result = add(node, node.bin_dir, settings)

    call(node, REFERENCE_BIN, "DEL", {**settings, "prevResult": result})
    left = own_traces(node)
    again = json.loads(call(node, node.bin_dir, "ADD", settings).stdout)

    assert set(left) == {"firewall", "files"}  # masquerade elements, and the records of both
    assert {path.rpartition("/")[0] for path in left["files"]} == {"/run/pycni/attachments"}
    assert len(again["ips"]) == 2
    call(node, node.bin_dir, "DEL", settings)
    assert own_traces(node) == {}


def test_gc_removes_what_the_reference_left_of_ours(node: Node) -> None:
    """After a DEL by the Go plugin our GC finds the orphaned records and rules."""
    settings = config()
    result = add(node, node.bin_dir, settings)
    call(node, REFERENCE_BIN, "DEL", {**settings, "prevResult": result})
    node.delete_container("c1")
    node.command("sh", "-c", "touch -d @0 /run/pycni/attachments/*")

    call(node, node.bin_dir, "GC", {**settings, "cni.dev/valid-attachments": []})

    assert own_traces(node) == {}


PATHS: dict[str, Callable[[Node], tuple[Path, str]]] = {
    "our-bridge-their-ipam": lambda node: (node.bin_dir, str(REFERENCE_BIN)),
    "their-bridge-our-ipam": lambda node: (REFERENCE_BIN, str(node.bin_dir)),
}


@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.1.0"])
@pytest.mark.parametrize("who", PATHS)
def test_bridge_of_one_with_ipam_of_the_other(node: Node, who: str, version: str) -> None:
    """CNI_PATH decides whose host-local is called, and all goes as with one's own."""
    bin_dir, path = PATHS[who](node)
    settings = config(version)
    result = add(node, bin_dir, settings, path=path)
    assert node.addresses(CONTAINER, "eth0") == ["10.81.0.2/24", "fd00:81::2/64"]
    of_ours = [name for name in node.files() if "/attachments/host-local-" in name]
    assert bool(of_ours) == (who == "their-bridge-our-ipam")

    if version >= "0.4.0":
        call(node, bin_dir, "CHECK", {**settings, "prevResult": result}, path=path)
    call(node, bin_dir, "DEL", settings, path=path)

    assert own_traces(node) == {}


@pytest.mark.parametrize("first", ["reference", "ours"])
def test_leases_change_hands(node: Node, first: str) -> None:
    """Each host-local goes on with the other's store: next address, CHECK, DEL."""
    one, other = [str(REFERENCE_BIN), str(node.bin_dir)][:: 1 if first == "reference" else -1]
    settings = config()

    def ipam(command: str, bin_dir: str, containerid: str) -> Done:
        netns = "/run/netns/none"
        return node.execute(
            "host-local", command, settings, netns, bin_dir=bin_dir, containerid=containerid
        )

    given = [
        [ip["address"] for ip in json.loads(ipam("ADD", whose, containerid).stdout)["ips"]]
        for whose, containerid in ((one, "c1"), (other, "c2"), (one, "c3"))
    ]

    assert [pair[0] for pair in given] == ["10.81.0.2/24", "10.81.0.3/24", "10.81.0.4/24"]
    assert [pair[1] for pair in given] == ["fd00:81::2/64", "fd00:81::3/64", "fd00:81::4/64"]
    for whose, containerid in ((one, "c2"), (other, "c1"), (other, "c3")):
        assert ipam("CHECK", whose, containerid).returncode == 0
        assert ipam("DEL", whose, containerid).returncode == 0
        assert ipam("CHECK", whose, containerid).returncode == 1
    assert not [name for name in node.files() if name.endswith((".2", ".3", ".4"))]


CHAIN = [
    {"type": "portmap", "capabilities": {"portMappings": True}},
    {"type": "firewall", "backend": "iptables"},
    {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
    {"type": "bandwidth", "ingressRate": 10**9, "ingressBurst": 10**7},
]


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_chained_plugins_of_the_reference(node: Node, version: str) -> None:
    """portmap, firewall, tuning and bandwidth work behind our bridge, up to CHECK and DEL."""
    node.outside()
    container = node.container("c1")
    listed = network(version, [NET4])
    node.configure({**listed, "plugins": [*listed["plugins"], *CHAIN]})
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    environ = {
        "CNI_PATH": f"{node.bin_dir}:{REFERENCE_BIN}",
        "CAP_ARGS": json.dumps({"portMappings": ports}),
    }

    result = node.ok("add", "net1", container, **environ)
    node.ok("check", "net1", container, **environ)

    assert result["ips"][0]["address"] == "10.81.0.2/24"
    assert node.reaches(container, OUTSIDE4)
    assert fetched(node, container) == "hello"
    node.ok("del", "net1", container, **environ)
    assert node.links(container) == ["lo"]
    assert node.links("") == ["lo", "up0", "br0"]
    assert [line for line in node.firewall() if "10.81.0.2" in line] == []


def fetched(node: Node, container: str) -> str:
    """Return what a client outside gets from the container, over the published port."""
    serve = (
        "import socket; s = socket.create_server(('', 80)); print('ready', flush=True);"
        " c, _ = s.accept(); c.sendall(b'hello'); c.close()"
    )
    get = (
        f"import socket; c = socket.create_connection(('{NODE4}', 8080), 5);"
        " print(c.recv(9).decode(), end='')"
    )
    script = f"""
        mkfifo /run/ready
        nsenter --net={container} timeout 10 {sys.executable} -c "{serve}" >/run/ready &
        read -r _ </run/ready
        nsenter --net=/run/netns/outside timeout 10 {sys.executable} -c "{get}"
        """
    return node.command("sh", "-c", script)
