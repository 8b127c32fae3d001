"""Modes vxlan and auto: an overlay between nodes, judged by `ip`, `bridge` and real packets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.network.settings import AUTO, DIRECT, VXLAN
from tests.agent.nodes import Lan, Node, addresses, member
from tests.waits import wait_until

DEVICE = "pycni-vxlan"


@pytest.fixture
def far(lan: Lan) -> tuple[Node, Node]:
    """Two nodes in two networks, with a router in between that knows no pods."""
    return lan.node("a", 1, mode=VXLAN), lan.node("b", 2, network=2, mode=VXLAN)


def fdb(node: Node) -> dict[str, str]:
    """Return the FDB of the overlay: addresses of nodes by MAC, as `bridge` sees it."""
    text = node.command("bridge", "-j", "fdb", "show", "dev", DEVICE)
    return {one["mac"]: one["dst"] for one in json.loads(text)}


def neighbours(node: Node) -> dict[str, str]:
    """Return the permanent neighbours of the overlay: MACs by inner address."""
    found = node.ip("neigh", "show", "dev", DEVICE, "nud", "permanent")
    return {one["dst"]: one["lladdr"] for one in found}


def test_pods_reach_each_other_across_a_router(lan: Lan, far: tuple[Node, Node]) -> None:
    """By both IP versions, in packets as long as the MTU, and from a node to a pod and back."""
    a, b = far

    applied = [a.apply(b.member), b.apply(a.member)]
    here, _ = a.pod(), b.pod()

    assert [(one.mtu, one.problems) for one in applied] == [(1450, ())] * 2
    assert a.routes() == {
        "10.244.2.0/24": f"10.244.2.0 {DEVICE}",
        "fd00:10:244:2::/64": f"fd00:10:244:2:: {DEVICE}",
    }
    for netns in (here, a.netns):
        assert lan.machine.ping(netns, "10.244.2.10", "-Mdo", "-s1422")
        assert lan.machine.ping(netns, "fd00:10:244:2::10", "-Mdo", "-s1402")


def test_device_fdb_and_neighbours(far: tuple[Node, Node]) -> None:
    """Each entry follows from the Node object; nothing is learned or flooded."""
    a, b = far

    a.apply(b.member)

    (device,) = a.ip("link", "show", DEVICE)
    data = device["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["local"], data["learning"]) == (
        *(4242, 4789, "192.168.1.1"),
        False,
    )
    assert (device["address"], device["mtu"]) == ("0e:70:c0:a8:01:01", 1450)
    assert fdb(a) == {"0e:70:c0:a8:02:02": "192.168.2.2"}
    assert neighbours(a) == dict.fromkeys(("10.244.2.0", "fd00:10:244:2::"), "0e:70:c0:a8:02:02")
    assert a.sysctl(f"net/ipv4/conf/{DEVICE}/rp_filter") == "2"


def test_a_second_application_changes_nothing(far: tuple[Node, Node]) -> None:
    """The kernel reports no event of any kind, also to another agent."""
    a, b = far
    a.apply(b.member)
    a.restart()

    seen = a.changes()
    a.apply(b.member)

    assert seen() == []


def test_a_node_moves_and_goes(far: tuple[Node, Node]) -> None:
    """While the agent is away; what is left of it goes."""
    a, b = far
    a.apply(b.member)

    a.restart()
    a.apply(member("b", 2, addresses=addresses(2, 7)))
    moved = fdb(a), set(neighbours(a).values())
    a.restart()
    a.apply()

    assert moved == ({"0e:70:c0:a8:02:07": "192.168.2.7"}, {"0e:70:c0:a8:02:07"})
    assert (fdb(a), neighbours(a), a.routes()) == ({}, {}, {})


def test_over_ipv6(lan: Lan) -> None:
    """Nodes without IPv4 addresses carry both versions; a node with IPv4 alone is a problem."""
    a = lan.node("a", 1, mode=VXLAN)
    b = lan.node("b", 2, network=2, mode=VXLAN)
    six = [member(one.name, one.number, addresses=one.member.addresses[1:]) for one in (a, b)]
    four = member("c", 3, addresses=addresses(1, 3)[:1])

    applied = a.apply(six[1], four, own=six[0])
    b.apply(six[0], own=six[1])
    here, _ = a.pod(), b.pod()

    (problem,) = applied.problems
    assert problem.startswith("no overlay to node 'c': it has no IPv6 address")
    assert applied.mtu == 1430
    assert lan.machine.ping(here, "10.244.2.10", "-Mdo", "-s1402")
    assert lan.machine.ping(here, "fd00:10:244:2::10", "-Mdo", "-s1382")


def test_a_device_with_other_settings_is_made_anew(lan: Lan) -> None:
    """As is one whose node has another address now; its old addresses are gone."""
    a, b = lan.node("a", 1, mode=VXLAN, vni=7, vxlan_port=8472), member("b", 2)
    a.apply(b)
    a.settings = lan.node("x", 9, mode=VXLAN).settings
    a.restart()
    a.do("ip addr add 192.168.1.8/24 dev eth0")

    own = member("a", 5, addresses=addresses(1, 8)[:1])
    applied = a.apply(b, own=own)

    assert applied.problems == ()
    (device,) = a.ip("addr", "show", DEVICE)
    data = device["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["local"]) == (4242, 4789, "192.168.1.8")
    inner = {one["local"] for one in device["addr_info"] if one["scope"] == "global"}
    assert inner == {"10.244.5.0", "fd00:10:244:5::"}


@pytest.mark.parametrize("kind", ["dummy", "vxlan id 9 dstport 4789"])
def test_a_foreign_device_is_left_alone(far: tuple[Node, Node], kind: str) -> None:
    """It has the name; the problem says so, and no route is made."""
    a, b = far
    kind = "bridge" if kind == "dummy" else kind
    a.do(f"ip link add {DEVICE} type {kind}")
    before = a.ip("link", "show", DEVICE)

    (problem,) = a.apply(b.member).problems
    a.remove()

    assert problem.startswith(f"interface '{DEVICE}' is not the agent's")
    assert a.ip("link", "show", DEVICE) == before
    assert a.routes() == {}


REPAIRS = {
    # Its entries go first.
    f"ip link del {DEVICE}": "0e:70:c0:a8:02:02 was deleted from the FDB of the overlay",
    f"ip link set {DEVICE} down": f"interface '{DEVICE}' was set down",
    f"ip link set {DEVICE} mtu 1300": f"interface '{DEVICE}' was changed, its MTU is 1300",
    f"ip addr del 10.244.1.0/32 dev {DEVICE}": "address 10.244.1.0 was deleted",
    f"ip neigh del 10.244.2.0 dev {DEVICE}": "neighbour 10.244.2.0 of the overlay was changed",
    f"bridge fdb del 0e:70:c0:a8:02:02 dev {DEVICE} dst 192.168.2.2": (
        "0e:70:c0:a8:02:02 was deleted from the FDB of the overlay"
    ),
}


@pytest.mark.parametrize("line", REPAIRS)
def test_what_others_undo_comes_back(lan: Lan, far: tuple[Node, Node], line: str) -> None:
    """An event wakes; the next application mends it, and pods reach each other again."""
    a, b = far
    a.apply(b.member)
    b.apply(a.member)
    here, _ = a.pod(), b.pod()

    with a.listening() as reasons:
        a.do(line)
        wait_until(lambda: reasons, f"no event after '{line}'")
        applied = a.apply(b.member)

    assert reasons[0] == REPAIRS[line]
    assert applied.problems == ()
    assert lan.machine.ping(here, "10.244.2.10")
    assert lan.machine.ping(here, "fd00:10:244:2::10")


def test_own_changes_wake_nobody(far: tuple[Node, Node]) -> None:
    """Nodes come, move and go: the first reason is that of the mark at the end."""
    a, b = far

    a.apply(b.member)
    with a.listening() as reasons:
        a.apply(b.member, member("c", 3))
        a.apply(b.member, member("c", 3, addresses=addresses(1, 7)))
        a.apply(b.member)
        a.do(f"ip link set {DEVICE} mtu 1300")
        wait_until(lambda: reasons, "the listener is deaf")

    assert reasons == [REPAIRS[f"ip link set {DEVICE} mtu 1300"]]


def test_auto(lan: Lan) -> None:
    """Direct to a node on the link, by the overlay to one that is not; the MTU is the overlay's."""
    a = lan.node("a", 1, mode=AUTO)
    b = lan.node("b", 2, mode=AUTO)
    c = lan.node("c", 3, network=2, mode=AUTO)
    everybody = [one.member for one in (a, b, c)]

    applied = [one.apply(*(m for m in everybody if m is not one.member)) for one in (a, b, c)]
    pods = [one.pod() for one in (a, b, c)]

    assert [(one.mtu, one.problems) for one in applied] == [(1450, ())] * 3
    assert a.routes() == {
        "10.244.2.0/24": "192.168.1.2 eth0",
        "fd00:10:244:2::/64": "fd00:1::2 eth0",
        "10.244.3.0/24": f"10.244.3.0 {DEVICE}",
        "fd00:10:244:3::/64": f"fd00:10:244:3:: {DEVICE}",
    }
    assert list(fdb(a)) == ["0e:70:c0:a8:02:03"]
    for number in (2, 3):
        assert lan.machine.ping(pods[0], f"10.244.{number}.10")
        assert lan.machine.ping(pods[0], f"fd00:10:244:{number}::10")


def test_a_change_of_the_mode_leaves_nothing(lan: Lan) -> None:
    """From vxlan to direct: the routes are replaced, then the device goes."""
    a, b = lan.node("a", 1, mode=VXLAN), member("b", 2)
    a.apply(b)
    a.settings = lan.node("x", 9, mode=DIRECT).settings
    a.restart()

    assert a.apply(b).problems == ()

    assert a.routes()["10.244.2.0/24"] == "192.168.1.2 eth0"
    assert DEVICE not in a.command("ip", "-br", "link")


def test_from_direct_to_the_overlay(lan: Lan) -> None:
    """The other way round, by both families: the next hop is in the range of the old route."""
    a, b = lan.node("a", 1, mode=DIRECT), member("b", 2)
    a.apply(b)
    a.settings = lan.node("x", 9, mode=VXLAN).settings
    a.restart()

    assert a.apply(b).problems == ()

    assert a.routes() == {
        "10.244.2.0/24": f"10.244.2.0 {DEVICE}",
        "fd00:10:244:2::/64": f"fd00:10:244:2:: {DEVICE}",
    }


def test_auto_follows_a_node_behind_a_router(lan: Lan) -> None:
    """A node that is registered anew in another network is reached by the overlay, and back."""
    a = lan.node("a", 1, mode=AUTO)
    near, far = member("b", 2), member("b", 2, addresses=addresses(2, 2))
    by_link = a.apply(near), a.routes()
    overlay = a.apply(far), a.routes()
    again = a.apply(near), a.routes()

    assert [found.problems for found, _ in (by_link, overlay, again)] == [(), (), ()]
    assert overlay[1] == {
        "10.244.2.0/24": f"10.244.2.0 {DEVICE}",
        "fd00:10:244:2::/64": f"fd00:10:244:2:: {DEVICE}",
    }
    assert again[1] == by_link[1] != overlay[1]


def test_both_sides_derive_the_same_mac(far: tuple[Node, Node]) -> None:
    """Every node knows the MAC of every other by its Node object."""
    a, b = far
    a.apply(b.member)
    b.apply(a.member)

    macs: dict[str, Any] = {one.name: one.ip("link", "show", DEVICE)[0]["address"] for one in far}

    assert list(fdb(a)) == [macs["b"]]
    assert list(fdb(b)) == [macs["a"]]
