"""The facts that the agent takes of a Node, and those that it remembers of the cluster."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import nodes
from agent.cluster import Cluster, Member
from agent.logs import Log
from agent.nodes import Node
from agent.remembered import Remembered
from agent.snapshot import Snapshot, cluster_of, overlaps


def _node(**more: Any) -> dict[str, Any]:
    """Return a Node as the API server sends it, less what the agent does not need."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "a",
            "uid": "u-1",
            "resourceVersion": "17",
            "annotations": {nodes.PUBLIC_KEY: "key=", "other": "x"},
            "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
        "status": {
            "addresses": [
                {"type": "Hostname", "address": "a"},
                {"type": "InternalIP", "address": "2001:db8::1"},
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "192.0.2.99"},
                {"type": "ExternalIP", "address": "203.0.113.1"},
            ],
            "images": [{"names": ["x" * 500], "sizeBytes": 5}],
            "nodeInfo": {"containerRuntimeVersion": "containerd://2.4.2", "osImage": "x"},
        },
        **more,
    }


def _decoded(data: dict[str, Any]) -> Node:
    return msgspec.json.decode(json.dumps(data), type=Node)


def test_member() -> None:
    """Of a Node the first InternalIP of each family counts, both ranges, and the key."""
    found = nodes.member_of(_decoded(_node()))

    assert found == Member(
        "a",
        "u-1",
        (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")),
        (ipaddress.ip_network("10.244.1.0/24"), ipaddress.ip_network("fd00:1::/64")),
        "key=",
    )
    assert nodes.runtime_of(_decoded(_node())) == "containerd://2.4.2"


@pytest.mark.parametrize(
    "more",
    [
        {"spec": {}, "status": {}},
        {"spec": {"podCIDRs": []}, "status": {"addresses": []}},
        {"spec": {"podCIDR": "", "podCIDRs": ["10.244.1.0/33", "x"]}},
        {"status": {"addresses": [{"type": "InternalIP", "address": "node.example"}]}},
    ],
)
def test_member_of_a_new_node(more: dict[str, Any]) -> None:
    """A Node that has nothing yet, or what cannot be understood, is a member without it."""
    found = nodes.member_of(_decoded(_node(**more)))

    assert found.name == "a"
    assert not found.ranges or not found.addresses


def test_single_range() -> None:
    """podCIDR counts where podCIDRs is absent."""
    found = nodes.member_of(_decoded(_node(spec={"podCIDR": "10.244.7.0/24"})))

    assert found.ranges == (ipaddress.ip_network("10.244.7.0/24"),)


def test_cluster() -> None:
    """The others are sorted by name, and the node itself is not among them."""
    own, *others = (Member(name, name) for name in "bac")

    assert cluster_of(own, [*others, own]) == Cluster(own, tuple(others))


_NETWORKS = st.integers(16, 28).flatmap(
    lambda length: st.integers(0, 2**length - 1).map(
        lambda number: ipaddress.IPv4Network((number << (32 - length), length))
    )
)


@given(st.lists(_NETWORKS, min_size=1, max_size=2), st.lists(_NETWORKS, max_size=4))
def test_overlaps(own: list[Any], theirs: list[Any]) -> None:
    """Two ranges overlap exactly when an address is in both."""
    other = Member("b", "b", ranges=tuple(theirs))
    cluster = Cluster(Member("a", "a", ranges=tuple(own)), (other,))

    found = overlaps(cluster)

    assert {(one, two) for one, _, two in found} == {
        (one, two) for one in own for two in theirs if max(one[0], two[0]) <= min(one[-1], two[-1])
    }


class TestRemembered:
    """The last known cluster on the disk."""

    def _snapshot(self) -> Snapshot:
        members = [nodes.member_of(_decoded(_node())), Member("b", "u-2"), Member("c", "u-3")]
        return Snapshot(cluster_of(members[0], members), "containerd://2.4.2")

    def test_round_trip(self, tmp_path: Path) -> None:
        """A new agent finds what the last one has saved; the same is not written twice."""
        remembered = Remembered(tmp_path, Log("error"))

        assert remembered.load("a") is None
        assert remembered.save(self._snapshot())
        assert not remembered.save(self._snapshot())
        assert Remembered(tmp_path, Log("error")).load("a") == self._snapshot()
        assert (tmp_path / "cluster.json").stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        "text", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "own": {}}', "{", "\0"]
    )
    def test_damaged(self, tmp_path: Path, text: str) -> None:
        """A file that cannot be read, or is of another format, counts as none."""
        (tmp_path / "cluster.json").write_text(text)

        assert Remembered(tmp_path, Log("error")).load("a") is None

    def test_of_another_node(self, tmp_path: Path) -> None:
        """A disk that came from another node does not make this node that one."""
        remembered = Remembered(tmp_path, Log("error"))
        remembered.save(self._snapshot())

        assert remembered.load("b") is None
