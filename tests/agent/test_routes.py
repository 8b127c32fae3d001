"""Mode direct: routes to the pods of other nodes, on real kernels that forward real packets."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from agent.network import watched
from agent.network.fabric import Applied
from agent.network.settings import DIRECT
from agent.network.watched import LOST
from cni_common.kernel.route import RTM_NEWROUTE
from cni_common.node.veth import FORWARDING
from tests.agent.nodes import Lan, Node, addresses, member, ranges
from tests.machine import ROOT
from tests.resident import start_in
from tests.waits import longer_if_busy, wait_until

Nodes = tuple[Node, Node]


@pytest.fixture
def nodes(lan: Lan) -> Nodes:
    """Two nodes in one network."""
    return lan.node("a", 1, mode=DIRECT), lan.node("b", 2, mode=DIRECT)


@contextmanager
def visible(netns: str) -> Iterator[None]:
    """Have a process in a namespace, as a pod has."""
    process = start_in(netns, "sleep", "600")
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_pods_of_two_nodes_reach_each_other(lan: Lan, nodes: Nodes) -> None:
    """By IPv4 and IPv6; nothing is wrong, and the MTU is the uplink's."""
    a, b = nodes

    applied = [a.apply(b.member), b.apply(a.member)]
    here, _ = a.pod(), b.pod()

    assert [(one.mtu, one.public_key, one.problems) for one in applied] == [(1500, "", ())] * 2
    assert a.routes() == {
        "10.244.2.0/24": "192.168.1.2 eth0",
        "fd00:10:244:2::/64": "fd00:1::2 eth0",
    }
    assert lan.machine.ping(here, "10.244.2.10")
    assert lan.machine.ping(here, "fd00:10:244:2::10")


def test_a_second_application_changes_nothing(nodes: Nodes) -> None:
    """The kernel reports no event of any kind."""
    a, b = nodes
    a.apply(b.member)

    seen = a.changes()
    a.apply(b.member)

    assert seen() == []


def test_a_node_that_goes_while_the_agent_is_away_takes_its_routes_along(lan: Lan) -> None:
    """Another agent finds the routes by their protocol; those of others stay."""
    a = lan.node("a", 1, mode=DIRECT)
    b, c = member("b", 2), member("c", 3)
    a.apply(b, c)
    a.do("ip route add 10.99.0.0/24 via 192.168.1.9 proto static")

    a.restart()
    a.apply(c)

    assert set(a.routes()) == {"10.244.3.0/24", "fd00:10:244:3::/64"}
    assert a.ip("route", "show", "10.99.0.0/24") != []


def test_a_moved_node_has_its_routes_replaced(nodes: Nodes) -> None:
    """By one request each: no packet meets a table without the route."""
    a, b = nodes
    a.apply(b.member)

    seen = a.changes()
    applied = a.apply(member("b", 2, addresses=addresses(1, 7)))

    assert applied.problems == ()
    assert a.routes() == {
        "10.244.2.0/24": "192.168.1.7 eth0",
        "fd00:10:244:2::/64": "fd00:1::7 eth0",
    }
    assert seen() == [RTM_NEWROUTE] * 2


def test_a_changed_range_moves_the_routes(nodes: Nodes) -> None:
    """Also a node that comes back under its name, with another range."""
    a, b = nodes
    a.apply(b.member)

    a.apply(member("b", 2, ranges=ranges(5)))

    assert set(a.routes()) == {"10.244.5.0/24", "fd00:10:244:5::/64"}


@pytest.mark.parametrize("metric", [0, 77])
def test_a_foreign_route_is_left_alone(nodes: Nodes, metric: int) -> None:
    """It is a problem, which names it, until it goes; then ours is added."""
    a, b = nodes
    foreign = f"10.244.2.0/24 via 192.168.1.254 proto static metric {metric}"
    a.do(f"ip route add {foreign}")

    with a.listening() as reasons:
        applied = a.apply(b.member)
        routes = a.routes()
        a.do(f"ip route del {foreign}")
        wait_until(lambda: reasons, "no event tells of the deletion")

    (problem,) = applied.problems
    assert problem.startswith("no route to 10.244.2.0/24: there is one that is not the agent's,")
    assert "via 192.168.1.254" in problem
    assert routes == {"fd00:10:244:2::/64": "fd00:1::2 eth0"}
    assert a.apply(b.member).problems == ()
    assert "10.244.2.0/24" in a.routes()


def test_a_foreign_route_that_leads_the_same_way_serves(nodes: Nodes) -> None:
    """Another network plugin's, such as kindnet's, from which the node is moved."""
    a, b = nodes
    a.do("ip route add 10.244.2.0/24 via 192.168.1.2 proto static")

    applied = a.apply(b.member)

    assert applied.problems == ()
    assert set(a.routes()) == {"fd00:10:244:2::/64"}


def test_a_foreign_route_is_not_replaced_beside_ours(nodes: Nodes) -> None:
    """It came later, with another metric; ours moves, it does not."""
    a, b = nodes
    a.apply(b.member)
    a.do("ip route add 10.244.2.0/24 via 192.168.1.254 proto static metric 5")

    applied = a.apply(member("b", 2, addresses=addresses(1, 7)))

    assert len(applied.problems) == 1
    assert a.routes()["10.244.2.0/24"] == "192.168.1.7 eth0"
    (foreign,) = a.ip("route", "show", "10.244.2.0/24", "proto", "static")
    assert (foreign["gateway"], foreign["metric"]) == ("192.168.1.254", 5)


def test_the_bridge_forgets_a_range_of_before(lan: Lan, nodes: Nodes) -> None:
    """The gateway leads to the pods of another node; a pod with an address keeps it, or a lease."""
    a, _ = nodes
    now_another = member("c", 3, ranges=ranges(9))
    pod = lan.machine.container()
    a.do(
        "ip link add pycni0 type bridge",
        "ip addr add 10.244.1.1/24 dev pycni0",
        "ip addr add 10.244.9.1/24 dev pycni0",
        "ip addr add fd00:10:244:9::1/64 dev pycni0 nodad",
        "ip addr add 10.7.7.7/24 dev pycni0",
        "ip link set pycni0 up",
    )
    lan.machine.do(pod, "ip link set lo up", "ip addr add 10.244.9.5/32 dev lo")

    def addresses_of_bridge() -> set[str]:
        (link,) = a.ip("addr", "show", "dev", "pycni0")
        return {one["local"] for one in link["addr_info"] if one["scope"] == "global"}

    with visible(pod):
        a.apply(now_another)
        assert addresses_of_bridge() == {"10.244.1.1", "10.244.9.1", "10.7.7.7"}
    lan.machine.forget(pod)
    a.settings.leases.touch()  # no directory: what has a lease is not known
    a.apply(now_another)
    assert addresses_of_bridge() == {"10.244.1.1", "10.244.9.1", "10.7.7.7"}
    assert any("a gateway of a range before stays" in line for line in a.log)
    a.settings.leases.unlink()
    lease = a.settings.leases / "10.244.9.7"
    lease.parent.mkdir()
    lease.touch()
    (lease.parent / "lock").touch()
    a.apply(now_another)
    assert addresses_of_bridge() == {"10.244.1.1", "10.244.9.1", "10.7.7.7"}
    lease.unlink()

    applied = a.apply(now_another)

    assert addresses_of_bridge() == {"10.244.1.1", "10.7.7.7"}
    assert applied.problems == ()
    assert a.routes() == {
        "10.244.9.0/24": "192.168.1.3 eth0",
        "fd00:10:244:9::/64": "fd00:1::3 eth0",
    }
    assert a.apply(now_another).problems == ()


def test_no_route_leads_through_this_node(nodes: Nodes) -> None:
    """A Node object with this node's address is out of date; its routes would be a circle."""
    a, b = nodes

    applied = a.apply(b.member, member("old", 9, addresses=addresses(1, 1)))

    (problem,) = applied.problems
    assert problem.startswith("node 'old' has an address of this node, 192.168.1.1")
    assert "10.244.9.0/24" not in a.routes()
    assert "10.244.2.0/24" in a.routes()


def test_a_node_on_another_link_is_a_problem_of_mode_direct(lan: Lan) -> None:
    """One sentence for each range."""
    a = lan.node("a", 1, mode=DIRECT)

    applied = a.apply(member("b", 2, addresses=addresses(2, 2)), member("c", 3))

    four, six = applied.problems
    assert four == (
        "no route to the pods of node 'b', 10.244.2.0/24: its address 192.168.2.2 is in no network"
        " that this node is in, too; mode direct needs that, auto, vxlan and wireguard do not"
    )
    assert "fd00:10:244:2::/64" in six
    assert set(a.routes()) == {"10.244.3.0/24", "fd00:10:244:3::/64"}


def test_one_refused_request_does_not_keep_the_others(lan: Lan) -> None:
    """The kernel takes no broadcast address as a gateway."""
    a = lan.node("a", 1, mode=DIRECT)

    applied = a.apply(member("b", 255), member("c", 3))

    (problem,) = applied.problems
    assert problem.startswith("cannot add the route to 10.244.255.0/24: ")
    assert {"10.244.3.0/24", "fd00:10:244:3::/64"} <= set(a.routes())


def test_only_what_is_ours_is_removed(lan: Lan, nodes: Nodes) -> None:
    """Uninstalling; a second time there is nothing to do."""
    a, b = nodes
    before = a.snapshot()
    a.do("ip route add 10.244.9.0/24 via 192.168.1.9 proto static")
    a.apply(b.member)

    for _ in range(2):
        assert a.remove() == ()

    a.do("ip route del 10.244.9.0/24")
    assert a.snapshot() == before


def test_nothing_changes_while_the_node_has_no_range(nodes: Nodes) -> None:
    """A Node object that was made anew has none for some seconds, and pods go on."""
    a, b = nodes
    a.apply(b.member)
    before = a.snapshot()

    applied = a.apply(own=replace(a.member, ranges=()))

    assert applied == Applied(1500, "", ())
    assert a.snapshot() == before


# --- repair ---


def repaired(a: Node, b: Node, *lines: str) -> str:
    """Do something to node a and apply when its listener wakes; return the reason."""
    with a.listening() as reasons:
        begin = time.monotonic()
        a.do(*lines)
        wait_until(lambda: reasons, f"no event after {lines}")
        assert a.apply(b.member).problems == ()
        assert time.monotonic() - begin < longer_if_busy(1)
    return reasons[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ip route del 10.244.2.0/24", "the route to 10.244.2.0/24 was deleted"),
        ("ip -6 route del fd00:10:244:2::/64", "the route to fd00:10:244:2::/64 was deleted"),
        (
            "ip route change 10.244.2.0/24 via 192.168.1.9 proto 112",
            "the route to 10.244.2.0/24 was changed",
        ),
        ("sysctl -qw net.ipv4.ip_forward=0", "forwarding of IPv4 was switched off"),
        ("sysctl -qw net.ipv6.conf.all.forwarding=0", "forwarding of IPv6 was switched off"),
    ],
)
def test_what_others_undo_comes_back(nodes: Nodes, line: str, reason: str) -> None:
    """Within a second, by events of the kernel."""
    a, b = nodes
    a.apply(b.member)
    before = a.snapshot()

    assert repaired(a, b, line) == reason
    assert a.snapshot() == before
    assert [a.sysctl(name) for name in FORWARDING.values()] == ["1", "1"]


def test_own_changes_wake_nobody(nodes: Nodes) -> None:
    """Nodes come, move and go: the first reason is that of the mark at the end."""
    a, b = nodes
    c = member("c", 3)
    a.apply(b.member)

    with a.listening() as reasons:
        a.apply(b.member, c)
        a.apply(b.member, member("c", 3, addresses=addresses(1, 7)))
        a.apply(b.member)
        a.do("ip route del 10.244.2.0/24")
        wait_until(lambda: reasons, "the listener is deaf")

    assert reasons == ["the route to 10.244.2.0/24 was deleted"]


def test_the_mtu_follows_the_uplink(nodes: Nodes) -> None:
    """An event of the interface wakes, the next application returns the new MTU."""
    a, b = nodes
    a.apply(b.member)

    with a.listening() as reasons:
        a.do("ip link set eth0 mtu 1400")
        wait_until(lambda: reasons, "no event of the MTU")

    assert reasons[0] == "interface 'eth0' was changed, its MTU is 1400"
    assert a.apply(b.member).mtu == 1400


def test_routes_come_back_with_the_uplink(nodes: Nodes) -> None:
    """The kernel drops them with the interface, and says nothing of those of IPv4."""
    a, b = nodes
    a.apply(b.member)
    before = a.routes()

    with a.listening() as reasons:
        a.do("ip link set eth0 down", "ip link set eth0 up", "ip addr add fd00:1::1/64 dev eth0")
        wait_until(lambda: reasons, "no event of the interface")
        a.await_uplink()
        a.apply(b.member)

    assert a.routes() == before


READ_ONLY = """
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec "$@"
"""
APPLY = """
import ipaddress, sys
from agent.cluster import Cluster, Member
from agent.network.fabric import Fabric
from agent.network.settings import Settings
own = Member("a", "", (ipaddress.ip_address("192.168.1.1"),),
             tuple(map(ipaddress.ip_network, ("10.244.1.0/24", "fd00:10:244:1::/64"))))
settings = Settings("direct", host_root=sys.argv[1], pods_state_dir="")
print(Fabric(settings, print).apply(Cluster(own)).problems)
"""


@pytest.mark.parametrize("root", ["/proc/1/root", "/nowhere"])
def test_sysctls_from_a_container(lan: Lan, root: str) -> None:
    """Its /proc/sys is read-only; the host's is not, and without that there is a problem."""
    a = lan.node("a", 1)
    for name in FORWARDING.values():
        a.command("sh", "-c", f"echo 0 >/proc/sys/{name}")
    script = ["sh", "-ec", READ_ONLY, "sh", sys.executable, "-c", APPLY, root]

    said = a.command("env", f"PYTHONPATH={ROOT}", "unshare", "--mount", *script)

    is_set = root != "/nowhere"
    assert [a.sysctl(name) for name in FORWARDING.values()] == [str(int(is_set))] * 2
    assert ("the node does not forward packets of pods: " in said) != is_set


def test_an_event_that_cannot_be_read_ends_nothing(nodes: Nodes) -> None:
    """It counts as one that was lost, and later ones are heard."""
    a, b = nodes
    a.apply(b.member)

    with a.listening() as reasons, pytest.MonkeyPatch.context() as patch:
        patch.setitem(watched._CHECKS, RTM_NEWROUTE, lambda *_: "".index("x"))
        a.do("ip route add 10.99.0.0/24 via 192.168.1.9")
        wait_until(lambda: LOST in reasons, "the event is not noticed")
        patch.undo()
        a.do("ip route del 10.244.2.0/24")
        wait_until(lambda: "the route to 10.244.2.0/24 was deleted" in reasons, "it is deaf now")
