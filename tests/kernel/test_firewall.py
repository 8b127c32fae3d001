"""firewall: reachability, as real connections show, beside the chains of others."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from tests.kernel.walls import Walls
from tests.machine import Json, Machine

pytestmark = pytest.mark.timeout(300)  # many calls and connections each
BACKENDS = ("nftables", "iptables")
# Rulesets that drop all that is forwarded, by name.
DROPS: Mapping[str, str] = {
    "iptables-nft": "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP",
    "iptables-legacy": "iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP",
    "both": "iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP;"
    " iptables -P FORWARD DROP; ip6tables -P FORWARD DROP",
    "rule": "iptables -A FORWARD -j DROP; ip6tables -A FORWARD -j REJECT",
    # As dockerd lays it out.
    "docker": "for t in iptables ip6tables; do"
    " $t -N DOCKER; $t -N DOCKER-USER; $t -N DOCKER-FORWARD;"
    " $t -A DOCKER-USER -j RETURN; $t -A DOCKER -i docker0 ! -o docker0 -j DROP;"
    " $t -A DOCKER-FORWARD -o docker0 -j DOCKER; $t -A FORWARD -j DOCKER-USER;"
    " $t -A FORWARD -j DOCKER-FORWARD; $t -P FORWARD DROP; done",
}


@pytest.fixture
def walls(machine: Machine) -> Walls:
    """Give a node."""
    return Walls(machine)


@pytest.mark.rotating(3)  # most of their time goes to waiting for packets that are dropped
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("drop", DROPS)
def test_let_through(walls: Walls, drop: str, backend: str) -> None:
    """Where all is dropped, a container talks to outside with the plugin and not without it."""
    walls.shell(DROPS[drop])
    walls.attach()

    out = [("c1", "outside", version) for version in (4, 6)]
    into = [("outside", "c1", version) for version in (4, 6)]
    before = walls.reach(*out)
    walls.ok("ADD", backend=backend)
    during = walls.reach(*out, *into)
    walls.ok("CHECK", backend=backend)
    walls.ok("DEL", backend=backend)
    after = walls.reach(*out)

    assert (before, during) == ([False, False], [True, True, False, False])
    assert after == [False, False]
    assert (walls.records(), walls.own()) == ([], [])


@pytest.mark.both_edges
def test_result(walls: Walls) -> None:
    """The result is prevResult."""
    walls.attach()

    result = walls.ok("ADD")

    assert result == walls.results["c1 eth0"]


def test_docker_that_comes_later(walls: Walls) -> None:
    """A firewall that starts to drop after ADD finds the container let through."""
    walls.admitted("c1")

    walls.shell(DROPS["docker"])

    assert walls.reaches("c1", "outside")
    assert not walls.reaches("outside", "c1")


def test_neighbours_where_bridges_call_iptables(walls: Walls) -> None:
    """With br_netfilter a DROP of FORWARD is for frames of one bridge, too; ours let them pass."""
    walls.shell("echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables; iptables -P FORWARD DROP")
    walls.attach("c1")
    walls.attach("c2")

    before = walls.reaches("c1", "c2")
    walls.ok("ADD", "c1")
    walls.ok("ADD", "c2")

    assert (before, walls.reaches("c1", "c2")) == (False, True)


@pytest.mark.without_engine(reason="changes what this process finds")
def test_no_commands(walls: Walls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without iptables on the node its newer flavour is served all the same, the older is left."""
    walls.shell("iptables-legacy -P FORWARD ACCEPT; iptables -P FORWARD DROP")
    monkeypatch.setattr("cni_common.kernel.iptables._PATH", "/no/such/directory")

    walls.admitted("c1")
    walls.admitted("c2", backend="iptables")

    assert walls.reach(("c1", "outside", 4), ("c2", "outside", 4)) == [True, True]
    walls.ok("DEL", "c1")
    walls.ok("DEL", "c2", backend="iptables")
    assert (walls.rules(), walls.records()) == ([], [])


def test_administrator_goes_first(walls: Walls) -> None:
    """Rules of CNI-ADMIN decide before the plugin's rules, and are left there."""
    walls.shell("iptables -P FORWARD DROP; iptables -N CNI-ADMIN; iptables -N MINE")
    walls.admitted("c1")
    walls.admitted("c2", iptablesAdminChainName="MINE")
    c1, c2 = walls.address(4, "c1"), walls.address(4, "c2")

    walls.shell(f"iptables -A CNI-ADMIN -s {c1} -j DROP; iptables -A MINE -d {c2} -j ACCEPT")

    assert not walls.reaches("c1", "outside")
    assert walls.reaches("outside", "c2")
    walls.ok("DEL", "c1")
    walls.ok("DEL", "c2", iptablesAdminChainName="MINE")
    chains = [line for line in walls.saved() if "CNI" in line or "MINE" in line]
    assert chains == [
        ":CNI-ADMIN -",
        ":MINE -",
        f"-A CNI-ADMIN -s {c1}/32 -j DROP",
        f"-A MINE -d {c2}/32 -j ACCEPT",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bridge(walls: Walls, backend: str) -> None:
    """Containers of one bridge reach each other and outside, those of another with a policy not."""
    for cid, bridge in (("a", 0), ("b", 0), ("c", 1)):
        walls.admitted(cid, bridge=bridge, backend=backend, ingressPolicy="same-bridge")
    walls.admitted("open", bridge=2, backend=backend)

    # Whether outside reaches it is for the policy of FORWARD.
    may = [("a", "b"), ("a", "outside"), ("outside", "a"), ("open", "a")]
    may_not = [("a", "c"), ("c", "a")]
    calls = [(*pair, version) for version in (4, 6) for pair in (*may, *may_not)]
    assert walls.reach(*calls) == [True, True, True, True, False, False] * 2
    walls.ok("CHECK", "a", backend=backend, ingressPolicy="same-bridge")


@pytest.mark.parametrize("call", ["0", "1"])
def test_isolated(walls: Walls, call: str) -> None:
    """Not even neighbours reach it, with br_netfilter or without; outside does."""
    walls.shell(f"echo {call} > /proc/sys/net/bridge/bridge-nf-call-iptables")
    for cid, bridge in (("a", 0), ("b", 0), ("c", 1)):
        walls.admitted(cid, bridge=bridge, ingressPolicy="isolated")

    calls = [("a", "b", 4), ("a", "b", 6), ("a", "c", 4), ("a", "outside", 4), ("outside", "a", 6)]
    assert walls.reach(*calls) == [False, False, False, True, True]
    walls.ok("CHECK", "a", ingressPolicy="isolated")
    walls.ok("DEL", "b", ingressPolicy="isolated")
    assert walls.reaches("b", "outside")


@pytest.mark.parametrize("call", ["0", "1"])
def test_isolated_by_iptables(walls: Walls, call: str) -> None:
    """The reference's rules see frames of one bridge only with br_netfilter."""
    walls.shell(f"echo {call} > /proc/sys/net/bridge/bridge-nf-call-iptables")
    for cid in ("a", "b"):
        walls.admitted(cid, backend="iptables", ingressPolicy="isolated")

    assert walls.reaches("a", "b") == (call == "0")
    walls.ok("CHECK", "a", backend="iptables", ingressPolicy="isolated")


@pytest.mark.rotating(2)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["same-bridge", "isolated"])
def test_policy_goes_with_the_last(walls: Walls, backend: str, policy: str) -> None:
    """A bridge is kept apart until the last container with the policy is gone."""
    keys: Json = {"backend": backend, "ingressPolicy": policy}
    walls.admitted("a", "b", **keys)
    walls.admitted("c", bridge=1, **keys)
    walls.ok("DEL", "a", **keys)

    still = walls.reaches("a", "c")
    walls.ok("DEL", "b", **keys)
    no_more = walls.reaches("a", "c")
    walls.ok("DEL", "c", bridge=1, **keys)

    assert (still, no_more) == (False, True)
    assert (walls.records(), walls.own()) == ([], [])
    for version in (4, 6):
        assert not any("CNI-" in line for line in walls.saved(version))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strictest_policy_counts(walls: Walls, backend: str) -> None:
    """A bridge that has both policies is isolated until the last isolated container is gone."""
    walls.shell("echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables")
    walls.admitted("a", "b", backend=backend, ingressPolicy="same-bridge")
    walls.admitted("c", backend=backend, ingressPolicy="isolated")

    both = walls.reaches("a", "b")
    walls.ok("DEL", "c", backend=backend, ingressPolicy="isolated")

    assert (both, walls.reaches("a", "b")) == (False, True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_drop_before_accept(walls: Walls, backend: str) -> None:
    """Chains that come anew are not put before those that keep bridges apart."""
    keys: Json = {"backend": backend, "ingressPolicy": "same-bridge"}
    walls.admitted("a", **keys)
    walls.admitted("b", bridge=1, **keys)
    for command in ("iptables", "ip6tables"):
        walls.shell(
            f"{command}-save -t filter | grep -v 'CNI-FORWARD' | {command}-restore -T filter"
        )

    walls.ok("ADD", "a", **keys)
    walls.ok("ADD", "b", bridge=1, **keys)

    assert not walls.reaches("a", "b")
    walls.ok("CHECK", "a", **keys)


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_a_flush(walls: Walls, backend: str) -> None:
    """After a flush of the ruleset CHECK tells, and ADD makes it anew."""
    keys: Json = {"backend": backend, "ingressPolicy": "same-bridge"}
    walls.admitted("c1", **keys)
    walls.shell("nft flush ruleset; iptables -P FORWARD DROP")

    drift = walls.machine.refused("firewall", "CHECK", walls.config(**keys), walls.netns["c1"])
    walls.ok("ADD", **keys)

    assert "is missing" in drift["msg"]
    assert drift["msg"].endswith("; delete and add the attachment again")
    walls.ok("CHECK", **keys)
    assert walls.reaches("c1", "outside")
    walls.shell("nft flush ruleset")
    walls.ok("DEL", **keys)
    assert walls.records() == []


@pytest.mark.both_edges
@pytest.mark.parametrize("backend", BACKENDS)
def test_repeated(walls: Walls, backend: str) -> None:
    """ADD twice makes nothing twice, and DEL may be repeated."""
    walls.admitted("c1", backend=backend)
    before = walls.saved()

    walls.ok("ADD", backend=backend)

    assert walls.saved() == before
    assert len(walls.records()) == 1
    for _ in range(2):
        walls.ok("DEL", backend=backend)
    assert walls.rules() == []


def test_del_with_nothing_known(walls: Walls) -> None:
    """DEL needs neither namespace, prevResult nor the configuration that ADD had."""
    walls.admitted("c1", "c2", ingressPolicy="isolated", backend="iptables")

    walls.call("DEL", walls.config("c1", prevResult=None), "c1", netns="")

    assert [line for line in walls.rules() if walls.address(4, "c1") in line] == []
    assert len([line for line in walls.rules() if walls.address(4, "c2") in line]) == 2
    assert len(walls.records()) == 1
    walls.call("DEL", walls.config("c1", prevResult=None), "c1", netns="")
    walls.call("DEL", walls.config("c2", prevResult=None, ingressPolicy="nonsense"), "c2", netns="")
    assert walls.rules() == []


def test_del_of_another(walls: Walls) -> None:
    """A container that goes neither opens nor disturbs another."""
    walls.shell("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
    walls.admitted("a", "b", ingressPolicy="isolated")

    walls.ok("DEL", "a", ingressPolicy="isolated")

    assert walls.reaches("b", "outside")
    assert walls.reaches("b", "outside", 6)
    assert not walls.reaches("outside", "b")
    assert not walls.reaches("a", "b")
    walls.ok("CHECK", "b", ingressPolicy="isolated")


def test_two_networks_of_one_container(walls: Walls) -> None:
    """DEL of one network leaves the other's rules alone."""
    walls.shell("iptables -P FORWARD DROP")
    netns = walls.attach("c1")
    walls.attach("c1", 1, ifname="net1", netns=netns)
    walls.ok("ADD")
    walls.ok("ADD", bridge=1, ifname="net1")

    walls.ok("DEL", bridge=1, ifname="net1")

    assert walls.reaches("c1", "outside")
    walls.ok("CHECK")
    assert not any(walls.address(4, "c1", "net1") in line for line in walls.rules())


def test_one_address_in_two_networks(walls: Walls) -> None:
    """A rule that two attachments need, as their subnets overlap, stays until both are gone."""
    walls.attach("a")
    walls.results["b eth0"], walls.netns["b"] = walls.results["a eth0"], walls.machine.container()
    walls.ok("ADD", "a")
    walls.ok("ADD", "b", bridge=1)

    walls.ok("DEL", "a")
    between = len(walls.rules())
    walls.ok("DEL", "b", bridge=1)

    assert (between, walls.rules()) == (3, [])


@pytest.mark.both_edges
@pytest.mark.parametrize("backend", BACKENDS)
def test_status(walls: Walls, backend: str) -> None:
    """STATUS says that an ADD would work, and touches nothing."""
    before = walls.machine.nft()

    walls.call(
        "STATUS", {"cniVersion": "1.1.0", "name": "n", "type": "firewall", "backend": backend}
    )

    assert walls.machine.nft() == before


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"ingressPolicy": "closed"}, "ingressPolicy"),
        ({"backend": "pf"}, "backend"),
        ({"iptablesAdminChainName": "a b"}, "iptablesAdminChainName"),
        ({"iptablesAdminChainName": "CNI-FORWARD"}, "iptablesAdminChainName"),
        ({"iptablesAdminChainName": "x" * 29}, "iptablesAdminChainName"),
        ({"prevResult": None}, "prevResult"),
    ],
)
def test_bad_input(walls: Walls, keys: Json, text: str) -> None:
    """A configuration that cannot be carried out is refused before anything is made."""
    walls.attach()
    before = walls.machine.nft()

    error = walls.machine.refused("firewall", "ADD", walls.config(**keys), walls.netns["c1"])

    assert error["code"] == 7
    assert text in error["msg"]
    assert (walls.machine.nft(), walls.records()) == (before, [])


def test_policy_without_interface(walls: Walls) -> None:
    """A policy needs an interface of the host in prevResult."""
    walls.attach()
    config = walls.config(ingressPolicy="isolated")
    own = [one for one in config["prevResult"]["interfaces"] if one.get("sandbox")]
    ips = [{**ip, "interface": 0} for ip in config["prevResult"]["ips"]]
    config["prevResult"] = {**config["prevResult"], "interfaces": own, "ips": ips}

    error = walls.machine.refused("firewall", "ADD", config, walls.netns["c1"])

    assert error["code"] == 7
    assert walls.records() == []


def test_gc(walls: Walls, monkeypatch: pytest.MonkeyPatch) -> None:
    """GC removes what belongs to no valid attachment whose namespace lives."""
    monkeypatch.setattr("cni_common.node.liveness.GRACE_SECONDS", -1)
    walls.admitted("gone", "valid", "alive", ingressPolicy="same-bridge")
    for cid in ("gone", "valid"):
        walls.machine.end(walls.netns[cid])
    config = walls.config("valid", prevResult=None)
    config["cni.dev/valid-attachments"] = [{"containerID": "valid", "ifname": "eth0"}]

    with walls.machine.process_in(walls.netns["alive"]), walls.machine.make_host() as host:
        walls.machine.ok("firewall", "GC", config, host=host)

    owners = {
        json.loads(path.read_text().splitlines()[0])["containerid"] for path in walls.records()
    }
    assert owners == {"valid", "alive"}
    assert not any(walls.address(4, "gone") in line for line in walls.rules())
    assert len(walls.rules()) == 5
