"""What the reference plugins refuse ours refuse as well, with a code that says more."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cases import DEFAULT4, NET4, NET6, bridge, routed, with_routes
from tests.e2e.node import Node, node_with
from tests.machine import REFERENCE_BIN, ROOT, Json, error_of

CONTAINER = "/run/netns/c1"
CRASH = 2  # exit status of a Go panic
HOST_LOCAL = bridge(NET4)
BRIDGE_BESIDE = "ip link add br0 type bridge; ip link set br0 up"


@dataclass(frozen=True)
class Case:
    """A call that both refuse: with which codes, and what both say.

    `theirs` is what the reference says where it has no words in common with ours.
    """

    reference: int
    ours: int
    says: str
    config: Json | str = field(default_factory=lambda: routed(NET4))
    plugin: str = "bridge"
    command: str = "ADD"
    env: dict[str, str] = field(default_factory=dict)
    args: str = ""
    prepare: str = ""
    add_before: bool = False
    theirs: str = ""


def leases(ipam: Json, **keys: Any) -> Json:
    """Return a configuration of host-local alone."""
    return bridge(ipam=ipam, **keys)


def ranges(*ranges: Json) -> Json:
    """Return a configuration of host-local with one range set."""
    return leases({"ranges": [list(ranges)]})


NO_VARIABLES = dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"), "")
ALL_NAMES = "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH]"
CASES = {
    # the protocol: codes are the same
    "no-name": Case(7, 7, "missing network name", {"cniVersion": "1.0.0", "type": "bridge"}),
    "bad-name": Case(7, 7, "network name", routed(NET4, name="a/b")),
    "name-is-a-number": Case(6, 6, "name", '{"cniVersion":"1.0.0","name":5}'),
    "no-variables": Case(4, 4, ALL_NAMES, env=NO_VARIABLES),
    "no-netns": Case(4, 4, "[CNI_NETNS]", env={"CNI_NETNS": ""}),
    "bad-containerid": Case(4, 4, "CONTAINERID", env={"CNI_CONTAINERID": "a b"}),
    "long-ifname": Case(4, 4, "too long", env={"CNI_IFNAME": "x" * 16}),
    "slash-in-ifname": Case(4, 4, "/", env={"CNI_IFNAME": "a/b"}),
    "unknown-command": Case(4, 4, "unknown CNI_COMMAND: FOO", command="FOO"),
    "not-json": Case(6, 6, "", "{"),
    "array": Case(6, 6, "", "[]"),
    "not-a-number": Case(6, 6, "", '{"cniVersion":"1.0.0","name":"n","mtu":NaN}'),
    "trailing-data": Case(6, 6, "", '{"cniVersion":"1.0.0","name":"n"} x'),
    "newer-version": Case(1, 1, "incompatible CNI versions", routed(NET4, version="9.9.9")),
    "early-check": Case(
        1, 1, "config version does not allow CHECK", routed(NET4, version="0.3.1"), command="CHECK"
    ),
    "early-status": Case(
        1,
        1,
        "config version does not allow STATUS",
        routed(NET4, version="1.0.0"),
        command="STATUS",
    ),
    "early-gc": Case(
        1, 1, "config version does not allow GC", routed(NET4, version="1.0.0"), command="GC"
    ),
    "late-check": Case(
        1, 1, "plugin version does not allow CHECK", routed(NET4, version="9.0.0"), command="CHECK"
    ),
    # the container
    "netns-is-missing": Case(999, 8, "netns", env={"CNI_NETNS": "/run/netns/none"}),
    "netns-is-a-file": Case(999, 8, "", env={"CNI_NETNS": "/run/file"}, prepare="touch /run/file"),
    "ifname-exists": Case(
        999, 4, "already exists", prepare="ip -n c1 link add eth0 type veth peer name eth9"
    ),
    "attached-already": Case(999, 4, "already exists", add_before=True),
    "pair-without-value": Case(999, 4, "invalid pair", args="A"),
    "unknown-argument": Case(999, 4, "COLOUR", args="COLOUR=red"),
    "strange-boolean": Case(999, 4, "", args="IgnoreUnknown=maybe"),
    # bridge
    "mtu-is-a-string": Case(999, 7, "mtu", routed(NET4, mtu="1400")),
    "boolean-is-a-string": Case(999, 7, "isGateway", bridge(NET4, isGateway="true")),
    "hairpin-and-promiscuous": Case(
        999,
        7,
        "cannot set hairpin mode and promiscuous mode at the same time",
        routed(NET4, hairpinMode=True, promiscMode=True),
    ),
    "ipam-and-interface-down": Case(
        999,
        7,
        "cannot use IPAM when DisableContainerInterface flag is set",
        bridge(NET4, disableContainerInterface=True),
    ),
    "vlan": Case(999, 7, "invalid VLAN ID 5000 (must be between 0 and 4094)", bridge(vlan=5000)),
    "trunk-without-max": Case(999, 7, "maxID", bridge(vlanTrunk=[{"minID": 5}])),
    "trunk-id": Case(999, 7, "incorrect trunk id parameter", bridge(vlanTrunk=[{"id": 5000}])),
    "trunk-is-null": Case(CRASH, 7, "vlanTrunk", bridge(vlanTrunk=[None])),
    "backend": Case(
        999,
        7,
        "ipMasqBackend",
        routed(NET4, ipMasq=True, ipMasqBackend="pf"),
        theirs="ipmasq backend",
    ),
    "mac-is-no-mac": Case(999, 7, "MAC", bridge(runtimeConfig={"mac": "zz"})),
    "mac-is-a-group": Case(
        999, 7, "MAC", bridge(runtimeConfig={"mac": "01:00:5e:00:00:01"}), theirs="cannot assign"
    ),
    "bridge-name": Case(999, 7, "bridge", routed(NET4, bridge="b" * 16)),
    "not-a-bridge": Case(
        999, 7, "already exists but is not a bridge", prepare="ip link add br0 type veth"
    ),
    "other-address": Case(
        999,
        7,
        "already has an IP address different from",
        prepare=f"{BRIDGE_BESIDE}; ip addr add 10.99.0.1/24 dev br0",
    ),
    "no-ipam-plugin": Case(
        999, 50, 'failed to find plugin "nobody" in path [', bridge(ipam={"type": "nobody"})
    ),
    "ipam-plugin-is-a-path": Case(999, 7, "invalid plugin name", bridge(ipam={"type": "a/b"})),
    "layer2-in-0.2.0": Case(
        999, 1, "cannot convert: no valid IP addresses", bridge(version="0.2.0")
    ),
    "check-without-result": Case(
        999, 7, "Required prevResult missing", command="CHECK", add_before=True
    ),
    "check-of-other-family": Case(
        999,
        7,
        "cniVersion",
        routed(NET4, prevResult={"cniVersion": "0.4.0"}),
        command="CHECK",
        add_before=True,
    ),
    # host-local
    "no-ipam-key": Case(999, 7, "IPAM config missing 'ipam' key", bridge(), plugin="host-local"),
    "no-ranges": Case(
        999, 7, "no IP ranges specified", leases({"routes": []}), plugin="host-local"
    ),
    "too-small": Case(999, 7, "too small", ranges({"subnet": "10.9.0.0/31"}), plugin="host-local"),
    "host-bits": Case(999, 7, "", ranges({"subnet": "10.9.0.7/24"}), plugin="host-local"),
    "empty-set": Case(999, 7, "empty range set", leases({"ranges": [[]]}), plugin="host-local"),
    "mixed-families": Case(
        999,
        7,
        "mixed address families",
        ranges({"subnet": NET4}, {"subnet": NET6}),
        plugin="host-local",
    ),
    "overlap": Case(
        999, 7, "overlap", ranges({"subnet": NET4}, {"subnet": "10.81.0.0/25"}), plugin="host-local"
    ),
    "overlapping-sets": Case(
        999,
        7,
        "range set 0 overlaps with 1",
        leases({"ranges": [[{"subnet": NET4}], [{"subnet": NET4}]]}),
        plugin="host-local",
    ),
    "start-outside": Case(
        999,
        7,
        "RangeStart",
        ranges({"subnet": NET4, "rangeStart": "10.9.9.9"}),
        plugin="host-local",
    ),
    "two-sets-in-0.2.0": Case(
        999,
        7,
        "does not support more than",
        bridge(NET4, "10.82.0.0/24", version="0.2.0"),
        plugin="host-local",
    ),
    "no-resolv-conf": Case(
        999, 7, "/none", leases({"subnet": NET4, "resolvConf": "/none"}), plugin="host-local"
    ),
    "exhausted": Case(
        999,
        999,
        "failed to allocate for range 0: no IP addresses available in range set: "
        "10.81.0.1-10.81.0.2",
        ranges({"subnet": NET4, "rangeEnd": "10.81.0.2"}),
        plugin="host-local",
        prepare="mkdir -p /var/lib/cni/networks/net1;"
        " printf 'x\\r\\neth0' >/var/lib/cni/networks/net1/10.81.0.2",
    ),
    "duplicate": Case(
        999,
        999,
        "10.81.0.2 has been allocated to c1, duplicate allocation is not allowed",
        HOST_LOCAL,
        plugin="host-local",
        add_before=True,
    ),
    "requested-is-taken": Case(
        999,
        999,
        "requested IP address 10.81.0.2 is not available in range set",
        HOST_LOCAL,
        plugin="host-local",
        args="IP=10.81.0.2",
        prepare="mkdir -p /var/lib/cni/networks/net1;"
        " printf 'x\\r\\neth0' >/var/lib/cni/networks/net1/10.81.0.2",
    ),
    "requested-is-gateway": Case(
        999,
        999,
        "requested ip 10.81.0.1 is subnet's gateway",
        HOST_LOCAL,
        plugin="host-local",
        args="IP=10.81.0.1",
    ),
    "requested-is-elsewhere": Case(
        999,
        999,
        "failed to allocate all requested IPs: 10.9.0.1",
        HOST_LOCAL,
        plugin="host-local",
        args="IP=10.9.0.1",
    ),
    "requested-is-null": Case(
        CRASH, 7, "ips", bridge(NET4, runtimeConfig={"ips": [None]}), plugin="host-local"
    ),
    "nothing-to-check": Case(
        999,
        999,
        "host-local: Failed to find address added by container c1",
        HOST_LOCAL,
        plugin="host-local",
        command="CHECK",
    ),
    "default-twice": Case(
        999,
        999,
        "file exists",
        bridge(NET4, ipam={"routes": [DEFAULT4, DEFAULT4]}, isGateway=True),
    ),
    # loopback
    "foreign-address": Case(
        999,
        999,
        "",
        {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"},
        plugin="loopback",
        prepare="ip -n c1 address add 10.1.1.1/32 dev lo",
    ),
}


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


@pytest.mark.parametrize("plugin", ["bridge", "host-local", "loopback"])
def test_no_command(nodes: dict[str, Node], plugin: str) -> None:
    """Called by hand, a plugin says what it is and which versions it speaks, and exits with 0."""
    said = {
        who: node.execute(plugin, "", "", env={"CNI_COMMAND": ""}) for who, node in nodes.items()
    }

    assert {(done.returncode, done.stdout) for done in said.values()} == {(0, "")}
    versions = [done.stderr.splitlines()[1] for done in said.values()]
    assert versions[0] == versions[1]


@pytest.mark.parametrize("plugin", ["bridge", "host-local", "loopback"])
@pytest.mark.parametrize("stdin", ['{"cniVersion":"0.4.0"}', "", "garbage"])
def test_version(nodes: dict[str, Node], plugin: str, stdin: str) -> None:
    """VERSION is answered byte for byte alike, whatever stands on stdin."""
    said = [node.execute(plugin, "VERSION", stdin) for node in nodes.values()]

    assert said[0].stdout == said[1].stdout
    assert [done.returncode for done in said] == [0, 0]


@pytest.mark.parametrize("plugin", ["bridge", "host-local", "loopback"])
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


# What the reference fails on, half-way, and the heading in docs/differences.md.
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
    """What the reference fails on, half-way, works, and is documented."""
    said = [node.execute("bridge", "ADD", ONLY_OURS[heading], CONTAINER) for node in nodes.values()]

    assert [done.returncode for done in said] == [1, 0]
    for ip in json.loads(said[1].stdout)["ips"]:
        assert nodes["ours"].reaches(CONTAINER, ip["gateway"])
    assert f"**{heading}.**" in (ROOT / "docs" / "differences.md").read_text()
