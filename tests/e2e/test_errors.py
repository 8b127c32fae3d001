"""Input that the reference plugins refuse ours refuse as well, with a code that says more.

What the Go plugins have said stands in tests/golden/errors.json.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from plugins import TYPES
from tests import dhcp
from tests.e2e import compare
from tests.e2e.cases import DEFAULT4, NET4, bridge, routed, with_routes
from tests.e2e.node import Done, Node, node_with
from tests.e2e.refusals import CASES, CRASH, Case
from tests.golden import Golden
from tests.machine import DIST, REFERENCE_BIN, ROOT, Json, error_of

CONTAINER = "/run/netns/c1"
# These are a contract: an engine refuses them with the same words.
CONTRACTS = {
    "no-name",
    "no-variables",
    "not-json",
    "newer-version",
    "early-check",
    "netns-is-missing",
    "attached-already",
    "unknown-argument",
    "mtu-is-a-string",
    "exhausted",
    "static-no-ipam",
    "foreign-address",
}
NAMES = [
    pytest.param(name, marks=[pytest.mark.both_edges] if name in CONTRACTS else [])
    for name in CASES
]


@pytest.fixture
def ours(node: Node) -> Node:
    """Our node, with a container."""
    node.container("c1")
    return node


def told(done: Done) -> Json:
    """Return what a plugin has said, line by line; where the Go plugins lie is masked."""
    stdout = done.stdout.replace(str(REFERENCE_BIN), "<reference>")
    return {"status": done.returncode, "stdout": stdout.splitlines(keepends=True)}


def said_by_reference(
    plugin: str, command: str, config: Json | str, *, netns: str = CONTAINER, **options: Any
) -> Json:
    """Return what a Go plugin says on a node of its own, with a container."""
    with node_with(REFERENCE_BIN) as node:
        node.container("c1")
        return told(node.execute(plugin, command, config, netns, **options))


def refused(node: Node, case: Case) -> Done:
    """Run the call of a case."""
    return node.execute(
        case.plugin, case.command, case.config, CONTAINER, env=case.env, args=case.args
    )


def refused_by_reference(case: Case) -> Json:
    """Return what a Go plugin says to a call that it refuses, without random names."""
    with node_with(REFERENCE_BIN) as node:
        node.container("c1")
        prepare(node, case)
        said = told(refused(node, case))
    return {**said, "stdout": [compare.mask(line) for line in said["stdout"]]}


@pytest.mark.rotating(2)
@pytest.mark.parametrize("name", NAMES)
def test_refusal(ours: Node, golden: Golden, name: str) -> None:
    """Both exit with 1 and a code; ours is a complete error object, and leaves all as it was."""
    case = CASES[name]
    theirs = golden.answer(name, lambda: refused_by_reference(case))
    prepare(ours, case)
    before = state(ours)

    done = refused(ours, case)

    assert state(ours) == before
    if case.reference == CRASH:
        assert theirs == {"status": CRASH, "stdout": []}
    else:
        said = json.loads("".join(theirs["stdout"]))
        assert (theirs["status"], said["code"]) == (1, case.reference)
        assert (case.theirs or case.says).lower() in said["msg"].lower()
    error = error_of(done.stdout)
    assert (done.returncode, error["code"]) == (1, case.ours), error
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


# Those compared with the Go plugins byte for byte; test_others_answer_alike has the others.
PLUGINS = ["bridge", "host-local", "loopback", "ptp", "static", "tuning"]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_no_command(ours: Node, golden: Golden, plugin: str) -> None:
    """Called by hand, a plugin says what it is and which versions it speaks, and exits with 0."""

    def versions(node: Node, bin_dir: Path) -> str:
        env = {"CNI_COMMAND": ""}
        done = node.execute(plugin, "", "", env=env, bin_dir=str(bin_dir))
        assert (done.returncode, done.stdout) == (0, "")
        return done.stderr.splitlines()[1]

    def theirs() -> str:
        with node_with(REFERENCE_BIN) as node:
            return versions(node, REFERENCE_BIN)

    # An engine is not asked for that.
    assert versions(ours, DIST) == golden.answer(f"no command, {plugin}", theirs)


STDINS = {"a version": '{"cniVersion":"0.4.0"}', "nothing": "", "garbage": "garbage"}


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize(
    "stdin", [pytest.param("a version", marks=pytest.mark.both_edges), "nothing", "garbage"]
)
def test_version(ours: Node, golden: Golden, plugin: str, stdin: str) -> None:
    """VERSION is answered byte for byte alike with any stdin."""
    theirs = golden.answer(
        f"VERSION of {plugin} with {stdin} on stdin",
        lambda: said_by_reference(plugin, "VERSION", STDINS[stdin]),
    )

    done = ours.execute(plugin, "VERSION", STDINS[stdin])

    assert told(done) == theirs
    assert done.returncode == 0


@pytest.mark.parametrize("plugin", sorted({*TYPES} - {*PLUGINS}))
def test_others_answer_alike(ours: Node, plugin: str) -> None:
    """Every other plugin answers what one of those does that are compared with the Go plugins."""

    def versions(name: str) -> str:
        done = ours.execute(name, "", "", env={"CNI_COMMAND": ""}, bin_dir=str(DIST))
        assert (done.returncode, done.stdout) == (0, "")
        return done.stderr.splitlines()[1]

    assert versions(plugin) == versions(PLUGINS[0])
    for stdin in STDINS.values():
        answer = told(ours.execute(plugin, "VERSION", stdin))
        assert answer == told(ours.execute(PLUGINS[0], "VERSION", stdin))
    with dhcp.daemon_of(ours) if plugin == "dhcp" else nullcontext():
        for command in ("GC", "STATUS"):
            # With these keys no plugin looks for its master, a device or a name.
            keys: Json = {"linkInContainer": True, "capabilities": {"deviceID": True}}
            config = routed(NET4, master="up0", vrfname="blue", **keys)
            done = ours.execute(plugin, command, config)
            assert told(done) == {"status": 0, "stdout": []}, command


@pytest.mark.both_edges
@pytest.mark.parametrize("plugin", [*PLUGINS, "firewall"])
@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_silent_success(ours: Node, golden: Golden, plugin: str, command: str) -> None:
    """GC and STATUS of a healthy network print nothing."""
    theirs = golden.answer(
        f"{command} of {plugin}", lambda: said_by_reference(plugin, command, routed(NET4), netns="")
    )

    done = ours.execute(plugin, command, routed(NET4))

    assert told(done) == theirs == {"status": 0, "stdout": []}


def test_own_namespace(ours: Node, golden: Golden) -> None:
    """Both refuse with code 8; ours does so first, and prints one object."""
    own = "/proc/1/ns/net"
    theirs = golden.answer(
        "own namespace",
        lambda: _code_and_words(said_by_reference("bridge", "ADD", bridge(), netns=own)),
    )

    done = ours.execute("bridge", "ADD", bridge(), own)

    assert theirs == {"status": 1, "begins with a result": True, "has code 8": True}
    assert (done.returncode, error_of(done.stdout)["code"]) == (1, 8)
    assert ours.traces() == {}


def _code_and_words(said: Json) -> Json:
    """Return what is fixed of two objects, a result with random names and an error."""
    text = "".join(said["stdout"])
    return {
        "status": said["status"],
        "begins with a result": '"interfaces"' in text,
        "has code 8": '"code": 8' in text,
    }


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
def test_del_anyway(ours: Node, golden: Golden, name: str) -> None:
    """DEL with what the reference cannot go on with removes the attachment all the same."""
    config, env, reference = DEL_ANYWAY[name]

    def deleted(node: Node) -> Done:
        node.command("touch", "/run/file")
        added = node.execute("bridge", "ADD", routed(NET4, ipMasq=True), CONTAINER)
        assert added.returncode == 0
        return node.execute("bridge", "DEL", config, CONTAINER, env=env)

    def theirs() -> int:
        with node_with(REFERENCE_BIN) as node:
            node.container("c1")
            return deleted(node).returncode

    done = deleted(ours)

    assert golden.answer(f"DEL, {name}", theirs) == reference
    assert told(done) == {"status": 0, "stdout": []}
    assert ours.traces("br0") == {}
    assert ours.links(CONTAINER) == ["lo"]


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
def test_only_ours_succeeds(ours: Node, golden: Golden, heading: str) -> None:
    """A request on which the reference fails half-way works, and is documented."""
    config = ONLY_OURS[heading]

    def theirs() -> Json:
        said = said_by_reference("bridge", "ADD", config)
        return {"status": said["status"], "msg": json.loads("".join(said["stdout"]))["msg"]}

    done = ours.execute("bridge", "ADD", config, CONTAINER)

    assert golden.answer(heading, theirs)["status"] == 1
    assert done.returncode == 0, done.stdout
    for ip in json.loads(done.stdout)["ips"]:
        assert ours.reaches(CONTAINER, ip["gateway"])
    assert f"\n| {heading} | " in (ROOT / "docs" / "differences.md").read_text()
