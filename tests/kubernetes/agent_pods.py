"""The agent as a user has it: the image, and the manifest by `kubectl apply`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.kubernetes.agents import Agents, Way, assert_no_groups, process_of
from tests.kubernetes.api import is_ready
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.node import Node
from tests.machine import DIST, ROOT

MANIFEST = ROOT / "deploy" / "kubernetes" / "pycni.yaml"
ARCHIVE = ROOT / "build" / "image" / "pycni.tar"  # `make image`
PROGRAM = ROOT / "dist" / "agent" / "pycni-agent"
PODS = "/api/v1/namespaces/kube-system/pods"
DAEMON_SETS = "/apis/apps/v1/namespaces/kube-system/daemonsets"
NAME = "pycni"
PROCESS = r"pycni-agent(?!.*on-host)"  # the agent itself


def missing() -> str:
    """Return why the agent cannot run in pods here, "" where it can."""
    return "" if ARCHIVE.exists() else f"{ARCHIVE} is not there: run make image"


class AgentPods(Agents):
    """The DaemonSet of a cluster."""

    def __init__(self, cluster: Cluster, way: Way, dist: Path = DIST) -> None:
        super().__init__(cluster, way, dist)
        for node in cluster.nodes.values():
            if ARCHIVE not in node.images:
                node.images.append(ARCHIVE)
                node.load(ARCHIVE)

    def text(self) -> str:
        """Return the manifest with the settings for this way of connecting pods."""
        return self.set_up(MANIFEST.read_text())

    def set_up(self, text: str) -> str:
        """Return a manifest with the settings for this way of connecting pods."""
        for name, value in (("MODE", self.way.mode), ("INTERFACE", self.way.interface)):
            text, count = re.subn(rf"(?m)^(  PYCNI_{name}:) \S+$", rf"\1 {value}", text)
            assert count == 1, f"the manifest has PYCNI_{name} {count} times"
        return text

    def start(self, *nodes: Node) -> None:
        """Apply the manifest. Nodes that have booted need nothing: their kubelet starts the pod."""
        if not nodes:
            self.cluster.plane.kubectl("apply", "-f", "-", stdin=self.text())

    def stop(self, *nodes: Node) -> None:
        """Delete the DaemonSet, and wait until its pods are gone."""
        assert not nodes, "a DaemonSet ends as a whole"
        self.cluster.api.delete(f"{DAEMON_SETS}/{NAME}", propagationPolicy="Foreground")
        self.cluster.api.wait(
            PODS,
            lambda found: not any(name.startswith(f"{NAME}-") for name in found),
            "the agents are gone",
        )

    def restart(self, *nodes: Node) -> None:
        """Delete the pods of these nodes, and wait until others are Ready."""
        for node in nodes:
            old = self._pod(node)
            self.cluster.api.delete(f"{PODS}/{old}")
            self.cluster.api.wait(
                PODS,
                lambda found, node=node, old=old: any(  # type: ignore[misc]
                    name.startswith(f"{NAME}-")
                    and name != old
                    and item["spec"].get("nodeName") == node.name
                    and is_ready(item)
                    for name, item in found.items()
                ),
                f"another agent of {node.name} is Ready",
            )

    def _pod(self, node: Node) -> str:
        return next(
            str(item["metadata"]["name"])
            for item in self.cluster.api.list(PODS)
            if item["metadata"]["name"].startswith(f"{NAME}-")
            and item["spec"].get("nodeName") == node.name
        )

    def _state(self, node: Node) -> str:
        items = [
            item["status"]
            for item in self.cluster.api.list(PODS)
            if item["metadata"]["name"].startswith(f"{NAME}-")
            and item["spec"].get("nodeName") == node.name
        ]
        return json.dumps([one.get("containerStatuses", one) for one in items])

    def kill(self, node: Node) -> None:
        """Kill the process: the kubelet starts the container again."""
        node.command("kill", "-KILL", str(process_of(node, PROCESS)))

    def uninstall(self, *nodes: Node, is_forced: bool = True) -> None:
        """Have the program take away what it has made; it refuses over pods unless forced."""
        for node in nodes or self.cluster.nodes.values():
            node.command(PROGRAM, "uninstall", *(["--force"] if is_forced else []))
            assert_no_groups(node)
