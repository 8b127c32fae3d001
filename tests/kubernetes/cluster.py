"""A cluster: one control plane and three nodes of a combination."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tests.kubernetes.api import EVENTS, NODES, PODS, Api, condition_of, is_ready
from tests.kubernetes.combination import Combination
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.node import Node
from tests.kubernetes.world import LOGS, World
from tests.machine import Json
from tests.waits import wait_until

ALL_PODS = "/api/v1/pods"
NAMESPACES = "/api/v1/namespaces"
NAMES = ("node1", "node2", "node3")
# What one writes down of a node when a test fails.
_COMMANDS = (
    "ip -d address",
    "ip route show table all",
    "ip -6 route show table all",
    "ip -s neigh",
    "bridge fdb",
    "nft list ruleset",
    "ls -lR /etc/cni /opt/cni/bin /var/lib/cni /run/pycni /run/netns",
    "cat /etc/cni/net.d/*",
    "ps -ef",
    "ctr --namespace k8s.io containers ls",
)


class Cluster:
    """A running cluster."""

    def __init__(self, world: World, combination: Combination, images: list[Path]) -> None:
        self.world, self.combination = world, combination
        self.logs = LOGS / combination.name
        self._images = images
        self.nodes: dict[str, Node] = {}

    def start(self) -> None:
        """Start the control plane and the nodes."""
        self.plane = ControlPlane(self.world, self.logs)
        for number, name in enumerate(NAMES, start=1):
            self.nodes[name] = self.add(name, number)
        self.api.wait(NODES, lambda found: {*NAMES} <= found.keys(), "all nodes have registered")

    def add(self, name: str, number: int) -> Node:
        """Boot a node and start its daemons."""
        node = Node(name, number, self.world, self.plane, self.combination)
        node.images = list(self._images)
        node.start()
        return node

    @property
    def api(self) -> Api:
        """A client with all rights."""
        return self.plane.api

    @property
    def first(self) -> Node:
        """A node."""
        return self.nodes[NAMES[0]]

    @property
    def second(self) -> Node:
        """Another node."""
        return self.nodes[NAMES[1]]

    @property
    def third(self) -> Node:
        """The node that tests take down."""
        return self.nodes[NAMES[2]]

    def wait_torn_down(self) -> None:
        """Wait until nodes have namespaces of those pods alone that stay.

        A namespace of the API that goes takes its pods with it a while later, and the runtime tears
        pods down after the API has lost them.
        """

        def are_gone() -> bool:
            return all(one["status"]["phase"] == "Active" for one in self.api.list(NAMESPACES))

        wait_until(are_gone, "namespaces of the API stay")
        for node in self.nodes.values():
            wait_until(partial(self._has_what_stays, node), f"{node.name} has other pods")

    def _has_what_stays(self, node: Node) -> bool:
        pods = [
            pod
            for pod in self.api.list(ALL_PODS)
            if pod["spec"].get("nodeName") == node.name and not pod["spec"].get("hostNetwork")
        ]
        is_going = any("deletionTimestamp" in pod["metadata"] for pod in pods)
        return not is_going and len(node.namespaces()) == len(pods)

    def ranges(self) -> dict[str, list[str]]:
        """Return the ranges of pods of each node, as the API has them now."""
        items = self.api.list(NODES)
        return {item["metadata"]["name"]: item["spec"].get("podCIDRs", []) for item in items}

    def wait_ready(self, *names: str, seconds: float = 60.0) -> None:
        """Wait until these nodes, or all, are Ready."""
        wanted = names or NAMES

        def all_ready(found: Mapping[str, Json]) -> bool:
            return all(name in found and is_ready(found[name]) for name in wanted)

        self.api.wait(NODES, all_ready, f"{', '.join(wanted)} are Ready", seconds)

    def readiness(self) -> dict[str, str]:
        """Return why each node is not Ready, "" where it is."""
        found = {
            item["metadata"]["name"]: condition_of(item, "Ready") for item in self.api.list(NODES)
        }
        return {
            name: "" if one.get("status") == "True" else str(one.get("message", "never reported"))
            for name, one in found.items()
        }

    def events(self, *reasons: str) -> list[str]:
        """Return the messages of events with one of these reasons."""
        return [item["message"] for item in self.api.list(EVENTS) if item.get("reason") in reasons]

    def events_of(self, kind: str) -> list[str]:
        """Return the messages of events about objects of a kind."""
        items = self.api.list(EVENTS)
        return [item.get("message", "") for item in items if item["involvedObject"]["kind"] == kind]

    def write_state(self, folder: Path) -> None:
        """Write what the API and the nodes say now into files of a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in (("nodes", NODES), ("pods", PODS), ("events", EVENTS)):
            try:
                text = json.dumps(self.api.list(path), indent=1)
            except Exception as error:  # noqa: BLE001 - the rest is worth as much
                text = repr(error)
            (folder / f"{name}.json").write_text(text)
        for node in self.nodes.values():
            (folder / f"{node.name}.txt").write_text(_told(node))

    def close(self) -> None:
        """End all of it, and remove its files: the next cluster of the world has the same names."""
        for node in self.nodes.values():
            node.shut_down()
        if plane := getattr(self, "plane", None):  # else that could not be started
            plane.close()
        self.world.clear()


def _told(node: Node) -> str:
    parts = []
    for command in _COMMANDS:
        done = node.run("sh", "-c", command)
        parts.append(f"$ {command}\n{done.stdout}{done.stderr}")
    return "\n".join(parts)
