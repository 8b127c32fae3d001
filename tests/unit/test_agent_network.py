"""The pure parts of the network between nodes: the nodes that can be routed to, and how."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster import Cluster, Member
from agent.network import plan, vxlan, wireguard


def member(name: str, address: str, *ranges: str) -> Member:
    """Return a node with one address."""
    networks = tuple(map(ipaddress.ip_network, ranges))
    return Member(name, f"uid-{name}", (ipaddress.ip_address(address),), networks)


OWN = member("a", "192.0.2.1", "10.0.1.0/24")


class TestPeers:
    """Which ranges of which nodes are routed."""

    def ranges(self, *others: Member) -> tuple[dict[str, list[str]], list[str]]:
        """Return the ranges by the nodes' names, and the problems."""
        found, problems = plan.peers(Cluster(OWN, others), OWN.addresses)
        return {one.member.name: [*map(str, one.ranges)] for one in found}, problems

    def test_all(self) -> None:
        """Ranges side by side are no overlap."""
        found, problems = self.ranges(
            member("b", "192.0.2.2", "10.0.0.0/24", "10.0.2.0/24"), member("c", "192.0.2.3")
        )

        assert found == {"b": ["10.0.0.0/24", "10.0.2.0/24"], "c": []}
        assert problems == []

    @pytest.mark.parametrize("overlap", ["10.0.1.0/24", "10.0.1.128/25", "10.0.0.0/16"])
    def test_overlap_with_this_node(self, overlap: str) -> None:
        """The route would take the packets of this node's own pods."""
        found, (problem,) = self.ranges(member("b", "192.0.2.2", overlap, "10.9.0.0/24"))

        assert found == {"b": ["10.9.0.0/24"]}
        assert problem == (
            f"no route to the pods of node 'b', {overlap}: it overlaps with 10.0.1.0/24 of node"
            " 'a'; give each node a podCIDR of its own"
        )

    def test_overlap_of_others(self) -> None:
        """The first in the order of names has the range, on every node."""
        found, (problem,) = self.ranges(
            member("b", "192.0.2.2", "10.0.4.0/24"), member("c", "192.0.2.3", "10.0.4.0/25")
        )

        assert found == {"b": ["10.0.4.0/24"], "c": []}
        assert "of node 'c', 10.0.4.0/25: it overlaps with 10.0.4.0/24 of node 'b'" in problem

    def test_range_with_a_node_in_it(self) -> None:
        """The route would cut the nodes off from each other."""
        found, (problem,) = self.ranges(
            member("b", "192.0.2.2", "192.0.2.0/25"), member("c", "192.0.2.3", "10.0.3.0/24")
        )

        assert found == {"b": [], "c": ["10.0.3.0/24"]}
        assert "the address of a node, 192.0.2.1, is in it" in problem

    @given(st.lists(st.tuples(st.integers(0, 63), st.integers(26, 32)), max_size=12))
    def test_no_two_ranges_overlap(self, drawn: list[tuple[int, int]]) -> None:
        """Any ranges of nodes; each refused range overlaps with one that is taken."""
        networks = [
            ipaddress.ip_network((int(ipaddress.ip_address("10.0.1.192")) + at, bits), strict=False)
            for at, bits in drawn
        ]
        others = [
            Member(f"n{number:02}", "", (ipaddress.ip_address(f"192.0.2.{number + 9}"),), (one,))
            for number, one in enumerate(networks)
        ]
        own = member("a", "192.0.2.1", "10.0.1.224/27")

        found, problems = plan.peers(Cluster(own, tuple(others)), ())

        taken = [*own.ranges, *(one for peer in found for one in peer.ranges)]
        assert len(taken) + len(problems) == len(networks) + 1
        for number, one in enumerate(taken):
            assert not any(one.overlaps(other) for other in taken[:number])
        for one in networks:
            assert any(one.overlaps(other) for other in taken)


def test_underlay() -> None:
    """IPv4 wherever a node has that, in any order."""
    four, six = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")

    assert plan.underlay(Member("a", "", (six, four))) == 4
    assert plan.underlay(Member("a", "", (six,))) == 6
    assert plan.underlay(Member("a", "")) == 0


def test_macs() -> None:
    """Local, unicast, and each address has its own."""
    macs = {vxlan.mac_of(ipaddress.ip_address(f"192.0.{a}.{b}")) for a in (2, 3) for b in (1, 2)}
    macs |= {vxlan.mac_of(ipaddress.ip_address(f"2001:db8::{number}")) for number in (1, 2)}

    assert len(macs) == 6
    assert {int(mac[:2], 16) & 3 for mac in macs} == {2}
    assert vxlan.mac_of(ipaddress.ip_address("192.0.2.1")) == "0e:70:c0:00:02:01"


class TestTunnels:
    """Which nodes become peers of WireGuard."""

    KEYS = tuple(f"{letter * 42}Y=" for letter in "ABC")

    @pytest.mark.parametrize(
        ("key", "words"),
        [
            ("", "it has not announced its key yet"),
            ("nonsense", "its annotation holds no key; delete the annotation"),
            ("A" * 42 + "Y=", "node 'a' has the same key; delete the file wireguard.key on one"),
        ],
    )
    def test_refused(self, key: str, words: str) -> None:
        """The others get their tunnels."""
        own = Member("a", "", OWN.addresses, OWN.ranges, self.KEYS[0])
        bad = Member("b", "", (ipaddress.ip_address("192.0.2.2"),), (), key)
        good = Member("c", "", (ipaddress.ip_address("192.0.2.3"),), (), self.KEYS[2])
        peers = [plan.Peer(one, ()) for one in (bad, good)]

        found, (problem,) = wireguard.tunnels(own, peers, 4, port=51820)

        assert found == {self.KEYS[2]: wireguard.Tunnel(("192.0.2.3", 51820), frozenset())}
        assert problem.startswith(f"no WireGuard tunnel to node 'b': {words}")
