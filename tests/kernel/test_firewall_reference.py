"""firewall beside the Go plugin: the same requests, the same rules and the same connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.kernel.walls import Walls
from tests.machine import Json, Machine, machine_at

pytestmark = pytest.mark.timeout(300)  # many calls and connections each
SETTINGS: Mapping[str, Json] = {
    "open": {},
    "admin chain": {"iptablesAdminChainName": "MINE"},
    "same-bridge": {"ingressPolicy": "same-bridge"},
    "isolated": {"ingressPolicy": "isolated"},
}


@pytest.fixture
def walls(machine: Machine) -> Walls:
    """Give a node."""
    return Walls(machine)


def old(config: Json) -> Json:
    """Return a configuration of a version that the Go plugin knows as we do."""
    previous = {**config["prevResult"], "cniVersion": "1.0.0"}
    return {**config, "cniVersion": "1.0.0", "prevResult": previous}


def reference(walls: Walls, command: str, containerid: str, **keys: Any) -> None:
    """Run the Go plugin for a container that was attached."""
    config = old(walls.config(containerid, **{"backend": "iptables", **keys}))
    netns = walls.netns[containerid]
    walls.machine.reference("firewall", command, config, netns, containerid=containerid)


@pytest.mark.rotating(3)
@pytest.mark.parametrize("backend", ["iptables", "nftables"])
@pytest.mark.parametrize("name", SETTINGS)
def test_layout(
    walls: Walls, tmp_path_factory: pytest.TempPathFactory, name: str, backend: str
) -> None:
    """`iptables-save` after our ADDs is that after the Go plugin's, and each CHECKs the other's."""
    keys = dict(SETTINGS[name])
    if backend == "nftables":
        keys.pop("ingressPolicy", "")  # which is in tables of our own
    listings = []
    with machine_at(tmp_path_factory.mktemp("other"), walls.machine.name) as machine:
        for one in (walls, Walls(machine)):
            for cid, bridge in (("a", 0), ("b", 0), ("c", 1)):
                one.attach(cid, bridge)
                if one is walls:
                    one.ok("ADD", cid, bridge=bridge, backend=backend, **keys)
                    reference(one, "CHECK", cid, bridge=bridge, **keys)
                else:
                    reference(one, "ADD", cid, bridge=bridge, **keys)
                    one.ok("CHECK", cid, bridge=bridge, backend="iptables", **keys)
            listings.append([one.saved(4), one.saved(6)])

    assert listings[0] == listings[1]
    assert len(walls.rules()) == 7


@pytest.mark.parametrize("version", [4, 6])
def test_legacy_layout(walls: Walls, version: int) -> None:
    """In the older flavour the rules are word for word those of the newer one."""
    walls.shell("iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP")
    walls.admitted("a", "b", backend="iptables", ingressPolicy="isolated")

    newer, older = walls.saved(version), walls.saved(version, "legacy")
    older = [line.replace(":FORWARD DROP", ":FORWARD ACCEPT") for line in older]
    assert sorted(older) == sorted(newer)
    for cid in ("a", "b"):
        walls.ok("DEL", cid, backend="iptables", ingressPolicy="isolated")
    left = [line for line in walls.saved(version, "legacy") if "CNI-" in line]
    assert left == [":CNI-ADMIN -"]


@pytest.mark.without_engine(reason="compares two programs")
@pytest.mark.rotating(3)
@pytest.mark.parametrize("policy", ["open", "same-bridge", "isolated"])
@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_reachability(walls: Walls, backend: str, policy: str) -> None:
    """The same containers reach each other by either plugin."""
    walls.shell("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
    for name in ("iptables", "ip6tables"):
        walls.shell(f"echo 1 > /proc/sys/net/bridge/bridge-nf-call-{name}")
    members = {"a": 0, "b": 0, "c": 1, "open": 2}
    keys: Json = {cid: {"ingressPolicy": "open" if cid == "open" else policy} for cid in members}
    for cid, bridge in members.items():
        walls.attach(cid, bridge)
    pairs = [("a", "b"), ("a", "c"), ("c", "a"), ("open", "a"), ("a", "outside"), ("outside", "a")]
    calls = [(*pair, version) for version in (4, 6) for pair in pairs]

    for cid, bridge in members.items():
        reference(walls, "ADD", cid, bridge=bridge, **keys[cid])
    theirs = walls.reach(*calls)
    walls.shell("nft flush ruleset; iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
    for cid, bridge in members.items():
        walls.ok("ADD", cid, bridge=bridge, backend=backend, **keys[cid])
    ours = walls.reach(*calls)

    assert dict(zip(calls, ours, strict=True)) == dict(zip(calls, theirs, strict=True))
    assert set(ours) == {True, False}


@pytest.mark.without_engine(reason="compares two programs")
@pytest.mark.parametrize("backend", ["iptables", "nftables", ""])
def test_each_removes_the_others(walls: Walls, backend: str) -> None:
    """A node may change its plugin under living containers, in both directions."""
    walls.attach("c1")

    reference(walls, "ADD", "c1")
    walls.ok("DEL", backend=backend)
    after_ours = walls.rules(), walls.rules(6)
    walls.ok("ADD", backend=backend)
    reference(walls, "DEL", "c1")

    assert after_ours == ([], [])
    assert [line for line in (*walls.rules(), *walls.rules(6)) if "conntrack" in line] == []
    walls.ok("DEL", backend=backend)
    assert walls.records() == []


@pytest.mark.without_engine(reason="compares two programs")
def test_policy_of_the_reference_stays(walls: Walls) -> None:
    """Bridges that the Go plugin keeps apart stay so when the last container of ours is gone."""
    for cid, bridge in (("a", 0), ("b", 1), ("ours", 0)):
        walls.attach(cid, bridge)
    keys: Json = {"backend": "iptables", "ingressPolicy": "same-bridge"}
    reference(walls, "ADD", "a", **keys)
    reference(walls, "ADD", "b", bridge=1, **keys)
    before = walls.saved()

    walls.ok("ADD", "ours", **keys)
    walls.ok("DEL", "ours", **keys)

    assert walls.saved() == before
    assert not walls.reaches("a", "b")
