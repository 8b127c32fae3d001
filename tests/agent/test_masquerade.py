"""Masquerading of what leaves the cluster, judged by `nft` and by servers that see the source."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest

from agent.network.settings import DIRECT
from tests.agent.nodes import Lan, Node, member
from tests.sockets import asks, serving
from tests.waits import wait_until

TABLE = "inet pycni-agent"
POD = {4: "10.244.1.10", 6: "fd00:10:244:1::10"}
OUTSIDE = {4: "192.168.1.254", 6: "fd00:1::254"}
INSIDE = {"10.244.1.0/24", "10.244.2.0/24", "169.254.0.0/16", "224.0.0.0/4"}


def destinations(node: Node, version: int = 4) -> set[str]:
    """Return the destinations that are not masqueraded, as `nft` prints them."""
    text = node.command("nft", "-j", "list", "set", *TABLE.split(), f"stays{version}")
    (found,) = [one["set"] for one in json.loads(text)["nftables"] if "set" in one]
    pairs = [one["concat"] for one in found.get("elem", ())]
    own = {4: "10.244.1.0", 6: "fd00:10:244:1::"}
    assert {pair[0]["prefix"]["addr"] for pair in pairs} <= {own[version]}
    return {f"{pair[1]['prefix']['addr']}/{pair[1]['prefix']['len']}" for pair in pairs}


def source_at(lan: Lan, pod: str, server: str, address: str) -> str:
    """Return which source a server in a namespace sees of a pod that asks `address`."""
    with serving(server, "udp", 7000, [address]) as (one,):
        return asks(pod, one, address, 7000)


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_server_sees(lan: Lan, version: int) -> None:
    """Outside the node's address; a pod of another node sees the pod's own."""
    a, b = lan.node("a", 1, mode=DIRECT), lan.node("b", 2, mode=DIRECT)
    a.apply(b.member)
    b.apply(a.member)
    pod, other = a.pod(), b.pod()
    node = str(a.member.address(version))

    assert source_at(lan, pod, lan.router, OUTSIDE[version]) == node
    there = {4: "10.244.2.10", 6: "fd00:10:244:2::10"}[version]
    assert source_at(lan, pod, other, there) == POD[version]


def test_the_table(lan: Lan) -> None:
    """One chain, whose rules do not grow; the second application sends nothing."""
    a = lan.node("a", 1, mode=DIRECT)

    a.apply(member("b", 2))
    rules = [
        line.strip().partition(" comment ")[0]
        for line in a.command("nft", "list", "chain", *TABLE.split(), "postrouting").splitlines()
        if "comment" in line
    ]

    assert rules == [
        "ip saddr . ip daddr @stays4 accept",
        "ip6 saddr . ip6 daddr @stays6 accept",
        "ip saddr 10.244.1.0/24 masquerade fully-random",
        "ip6 saddr fd00:10:244:1::/64 masquerade fully-random",
    ]
    assert destinations(a) == INSIDE
    assert destinations(a, 6) == {
        *("fd00:10:244:1::/64", "fd00:10:244:2::/64", "fe80::/10", "ff00::/8"),
    }
    changes = a.changes()
    a.apply(member("b", 2))
    assert changes() == []


def test_nodes_come_and_go_and_ranges_are_joined(lan: Lan) -> None:
    """Also while the agent is away."""
    a = lan.node("a", 1, mode=DIRECT)
    a.apply(member("b", 2))

    a.restart()
    a.apply(member("c", 3), member("d", 4))

    assert destinations(a) == (INSIDE - {"10.244.2.0/24"}) | {"10.244.3.0/24", "10.244.4.0/24"}
    a.apply(member("c", 2), member("d", 3))
    assert destinations(a) == (INSIDE - {"10.244.2.0/24"}) | {"10.244.2.0/23"}


def test_more_ranges_by_settings(lan: Lan) -> None:
    """A range around others is no conflict."""
    more = (ipaddress.ip_network("10.0.0.0/8"),)
    a = lan.node("a", 1, mode=DIRECT, unmasqueraded=more)

    assert a.apply(member("b", 2)).problems == ()
    assert destinations(a) == {"10.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4"}


def test_without_masquerading(lan: Lan) -> None:
    """Switched off, what an earlier agent has made goes."""
    a = lan.node("a", 1, mode=DIRECT)
    a.apply(member("b", 2))
    a.settings = lan.node("x", 9, mode=DIRECT, masquerade=False).settings
    a.restart()

    assert a.apply(member("b", 2)).problems == ()
    assert a.command("nft", "list", "tables") == ""


REPAIRS = (
    "nft flush ruleset",
    f"nft delete table {TABLE}",
    f"nft flush chain {TABLE} postrouting",
    f"nft flush set {TABLE} stays4",
    f"nft insert rule {TABLE} postrouting accept",
    f"nft add element {TABLE} stays4 {{ 10.244.1.0/24 . 9.9.9.9 }}",
)


@pytest.mark.parametrize("line", REPAIRS)
def test_what_others_change_comes_back(lan: Lan, line: str) -> None:
    """An event wakes; the table is as before, and so are those of others."""
    a = lan.node("a", 1, mode=DIRECT)
    a.apply(member("b", 2))
    before = a.snapshot()

    with a.listening() as reasons:
        a.command(*line.split(maxsplit=5))
        wait_until(lambda: reasons, f"no event after '{line}'")
        assert a.apply(member("b", 2)).problems == ()

    assert reasons[0] == "'table inet pycni-agent' of nftables was changed"
    assert a.snapshot() == before


def test_a_table_beyond_recognition_is_made_anew(lan: Lan) -> None:
    """Another program has one of this name, with a set of another type."""
    a = lan.node("a", 1, mode=DIRECT)
    a.command("nft", f"add table {TABLE}; add set {TABLE} stays4 {{ type inet_service; }}")

    assert a.apply(member("b", 2)).problems == ()
    assert destinations(a) == INSIDE


def test_tables_of_others_wake_nobody(lan: Lan) -> None:
    """kube-proxy changes its tables all the time; nor do our own changes."""
    a = lan.node("a", 1, mode=DIRECT)
    a.apply(member("b", 2))

    with a.listening() as reasons:
        a.command("nft", "add table inet kube-proxy; add chain inet kube-proxy services")
        a.apply(member("c", 3))
        a.apply(member("b", 2))
        a.command("nft", "add table inet other; delete table inet other")
        a.command("nft", "delete", "table", *TABLE.split())
        wait_until(lambda: reasons, "the listener is deaf")

    assert len(reasons) == 1


def test_removed(lan: Lan) -> None:
    """With the table alone; others stay."""
    a = lan.node("a", 1, mode=DIRECT)
    a.command("nft", "add table inet other")
    a.apply(member("b", 2))

    assert a.remove() == ()

    assert a.command("nft", "list", "tables") == "table inet other\n"


# --- the file of ip-masq-agent ---


def test_the_file(lan: Lan, tmp_path: Path) -> None:
    """Read at each application; a change wakes; a damaged one leaves the last good one in force."""
    file = tmp_path / "config"
    a = lan.node("a", 1, mode=DIRECT, masquerade_config=str(file))
    a.apply(member("b", 2))
    assert destinations(a) == INSIDE

    file.write_text("nonMasqueradeCIDRs: [172.16.0.0/12]\nmasqLinkLocal: true\nresyncInterval: 1s")
    assert a.apply(member("b", 2)).problems == ()
    good = destinations(a)
    with a.listening() as reasons:
        file.write_text("nonMasqueradeCIDRs: 172.16.0.0/12")
        wait_until(lambda: reasons, "the change of the file is not noticed")
        (problem,) = a.apply(member("b", 2)).problems

    assert good == (INSIDE - {"169.254.0.0/16"}) | {"172.16.0.0/12"}
    assert destinations(a) == good
    assert reasons == [f"'{file}' was changed"]
    assert problem.startswith(f"'{file}' is not used, the last good one is: nonMasqueradeCIDRs")
