"""What the reference plugins refuse ours refuse as well, with a code that says more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cases import DEFAULT4, NET4, bridge, routed, with_routes
from tests.e2e.node import Node, node_with
from tests.e2e.refusals import CASES, CRASH, Case
from tests.machine import DIST, REFERENCE_BIN, ROOT, error_of

CONTAINER = "/run/netns/c1"


@pytest.fixture
def nodes(bin_dir: Path) -> Iterator[dict[str, Node]]:
    """The reference's node and ours, each with a container."""
    with ExitStack() as stack:
        made = {
            "reference": stack.enter_context(node_with(REFERENCE_BIN)),
            "ours": stack.enter_context(node_with(bin_dir)),
        }
        for node in made.values():
            node.container("c1")
        yield made


@pytest.mark.parametrize("name", CASES)
def test_refusal(nodes: dict[str, Node], name: str) -> None:
    """Both exit with 1 and a code; ours is a complete error object, and leaves all as it was."""
    case = CASES[name]
    replies = {}
    for who, node in nodes.items():
        prepare(node, case)
        before = state(node)

        replies[who] = node.execute(
            case.plugin, case.command, case.config, CONTAINER, env=case.env, args=case.args
        )

        assert who == "reference" or state(node) == before
    theirs, ours = replies["reference"], replies["ours"]
    if case.reference == CRASH:
        assert (theirs.returncode, theirs.stdout) == (CRASH, "")
    else:
        assert (theirs.returncode, json.loads(theirs.stdout)["code"]) == (1, case.reference)
        assert (case.theirs or case.says).lower() in json.loads(theirs.stdout)["msg"].lower()
    error = error_of(ours.stdout)
    assert (ours.returncode, error["code"]) == (1, case.ours), error
    assert case.says.lower() in error["msg"].lower()


def prepare(node: Node, case: Case) -> None:
    """Bring a node into the state in which the call of `case` is refused."""
    node.command("sh", "-ec", f"true; {case.prepare}")
    if case.add_before:
        done = node.execute(case.plugin, "ADD", case.config, CONTAINER)
        assert done.returncode == 0, done.stdout


def state(node: Node) -> list[Any]:
    """Return what a refused call must not change; a bridge, a lock and a cursor may come."""
    return [
        {*node.links("")} - {"br0"},
        node.links(CONTAINER),
        node.firewall(),
        {n: t for n, t in node.files().items() if not n.endswith("/lock") and "last_res" not in n},
    ]


@pytest.mark.parametrize("plugin", ["bridge", "host-local", "loopback", "ptp", "static", "tuning"])
def test_no_command(nodes: dict[str, Node], plugin: str) -> None:
    """Called by hand, a plugin says what it is and which versions it speaks, and exits with 0."""
    bin_dirs = {"reference": REFERENCE_BIN, "ours": DIST}  # an engine is not asked for that
    said = {
        who: node.execute(plugin, "", "", env={"CNI_COMMAND": ""}, bin_dir=str(bin_dirs[who]))
        for who, node in nodes.items()
    }

    assert {(done.returncode, done.stdout) for done in said.values()} == {(0, "")}
    versions = [done.stderr.splitlines()[1] for done in said.values()]
    assert versions[0] == versions[1]


@pytest.mark.parametrize("plugin", ["bridge", "host-local", "loopback", "ptp", "static", "tuning"])
@pytest.mark.parametrize("stdin", ['{"cniVersion":"0.4.0"}', "", "garbage"])
def test_version(nodes: dict[str, Node], plugin: str, stdin: str) -> None:
    """VERSION is answered byte for byte alike, whatever stands on stdin."""
    said = [node.execute(plugin, "VERSION", stdin) for node in nodes.values()]

    assert said[0].stdout == said[1].stdout
    assert [done.returncode for done in said] == [0, 0]


@pytest.mark.parametrize(
    "plugin", ["bridge", "firewall", "host-local", "loopback", "ptp", "static", "tuning"]
)
@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_silent_success(nodes: dict[str, Node], plugin: str, command: str) -> None:
    """GC and STATUS of a healthy network print nothing."""
    for node in nodes.values():
        done = node.execute(plugin, command, routed(NET4))

        assert (done.returncode, done.stdout) == (0, "")


def test_own_namespace(nodes: dict[str, Node]) -> None:
    """Both refuse with code 8; ours does so first, and prints one object."""
    said = {
        who: node.execute("bridge", "ADD", bridge(), "/proc/1/ns/net")
        for who, node in nodes.items()
    }

    assert [done.returncode for done in said.values()] == [1, 1]
    assert '"interfaces"' in said["reference"].stdout
    assert '"code": 8' in said["reference"].stdout
    assert error_of(said["ours"].stdout)["code"] == 8
    assert nodes["ours"].traces() == {}


# What DEL is called with after a good ADD, and the exit status of the reference.
DEL_ANYWAY = {
    "netns-is-a-file": (routed(NET4), {"CNI_NETNS": "/run/file"}, 1),
    "netns-is-own": (routed(NET4), {"CNI_NETNS": "/proc/1/ns/net"}, 1),
    "bad-vlan": (routed(NET4, vlan=5000), {}, 1),
    "bad-mtu": (routed(NET4, mtu="1400"), {}, 1),
    "bad-range": (bridge(ipam={"ranges": [[{"subnet": "10.9.0.7/24"}]]}), {}, 1),
    "bad-arguments": (routed(NET4), {"CNI_ARGS": "A"}, 1),
    "bad-result": (routed(NET4, prevResult={"cniVersion": "0.4.0"}), {}, 0),
    "no-ipam": (bridge(), {}, 0),
}


@pytest.mark.parametrize("name", DEL_ANYWAY)
def test_del_anyway(nodes: dict[str, Node], name: str) -> None:
    """DEL with what the reference cannot go on with removes the attachment all the same."""
    config, env, reference = DEL_ANYWAY[name]
    for node in nodes.values():
        node.command("touch", "/run/file")
        added = node.execute("bridge", "ADD", routed(NET4, ipMasq=True), CONTAINER)
        assert added.returncode == 0

    said = [node.execute("bridge", "DEL", config, CONTAINER, env=env) for node in nodes.values()]

    assert [done.returncode for done in said] == [reference, 0]
    assert said[1].stdout == ""
    assert nodes["ours"].traces("br0") == {}
    assert nodes["ours"].links(CONTAINER) == ["lo"]


# Requests on which the reference fails half-way, by their subject in docs/differences.md.
ONLY_OURS = {
    "Several IPv4 gateways": routed(NET4, "10.82.0.0/24"),
    "Default route without gateway": bridge(
        NET4, ipam={"routes": [DEFAULT4]}, isDefaultGateway=True
    ),
    "Routes on the link": with_routes(
        {"dst": "192.168.9.0/24", "scope": 253}, {"dst": "fd09::/64", "gw": "::"}
    ),
    "Destinations with host bits": with_routes({"dst": "192.168.9.9/24"}),
    "Empty subnet": bridge(NET4, ipam={"subnet": "", "routes": [DEFAULT4]}, isGateway=True),
}


@pytest.mark.parametrize("heading", ONLY_OURS)
def test_only_ours_succeeds(nodes: dict[str, Node], heading: str) -> None:
    """A request on which the reference fails half-way works, and is documented."""
    said = [node.execute("bridge", "ADD", ONLY_OURS[heading], CONTAINER) for node in nodes.values()]

    assert [done.returncode for done in said] == [1, 0]
    for ip in json.loads(said[1].stdout)["ips"]:
        assert nodes["ours"].reaches(CONTAINER, ip["gateway"])
    assert f"\n| {heading} | " in (ROOT / "docs" / "differences.md").read_text()
