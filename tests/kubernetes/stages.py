"""From `kubectl apply` until nodes are Ready: when each node reached each stage."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from tests.kubernetes import agent_pods
from tests.kubernetes.agents import LIST, process_of
from tests.kubernetes.api import NODES, is_ready
from tests.kubernetes.cluster import NAMES, Cluster
from tests.kubernetes.node import CONFLISTS, Node
from tests.machine import ROOT, Json

FIGURES = ROOT / "build" / "kubernetes" / "ready.json"
_LOGS = f"/var/log/pods/kube-system_{agent_pods.NAME}-*/agent/*.log"
# Each stage, and what has happened at its end.
STAGES = {
    "kubectl": "the API has the DaemonSet, the last object of the manifest",
    "controller": "the API has the node's pod, which the controller of DaemonSets makes",
    "scheduler": "the pod is bound to its node",
    "kubelet": "volumes are mounted, the container's process is there",
    "start": "the agent has its settings, and logs that it has started",
    "agent": "plugins, engine, network are there, the list is written",
    "notice": "the API has the Node as Ready, as the kubelet has asked containerd",
}
OURS = ("start", "agent")


@dataclass
class Moments:
    """When a node has reached the end of each stage: seconds since the call of kubectl."""

    at: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0  # seconds of a processor that the agent has had until then

    def note(self, stage: str, seconds: float) -> None:
        """Keep the first moment."""
        self.at.setdefault(stage, seconds)

    @property
    def lasted(self) -> dict[str, float]:
        """The seconds of each stage, from the end of that before."""
        found, before = {}, 0.0
        for stage in STAGES:
            found[stage] = self.at[stage] - before
            before = self.at[stage]
        return found

    @property
    def ours(self) -> float:
        """The seconds of the agent."""
        return sum(self.lasted[stage] for stage in OURS)

    @property
    def total(self) -> float:
        """The seconds from the call of kubectl until the node is Ready."""
        return self.at["notice"]


class Follower:
    """Looks at a cluster while its agents start."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._began = time.time()
        self.nodes = {name: Moments() for name in NAMES}

    def see_sets(self, found: Mapping[str, Json]) -> bool:
        """Note the DaemonSet; tell whether it is there."""
        if agent_pods.NAME not in found:
            return False
        for moments in self.nodes.values():
            moments.note("kubectl", time.time() - self._began)
        return True

    def see_pods(self, found: Mapping[str, Json]) -> bool:
        """Note pods of agents; tell whether each node has one."""
        now = time.time() - self._began
        for name, item in found.items():
            if name.startswith(f"{agent_pods.NAME}-"):
                moments = self.nodes[_meant(item)]
                moments.note("controller", now)
                if item["spec"].get("nodeName"):
                    moments.note("scheduler", now)
        return all("scheduler" in one.at for one in self.nodes.values())

    def see_nodes(self, found: Mapping[str, Json]) -> bool:
        """Note Nodes that are Ready; tell whether all are."""
        now = time.time() - self._began
        for name, moments in self.nodes.items():
            if name in found and is_ready(found[name]):
                moments.note("notice", now)
        return all("notice" in one.at for one in self.nodes.values())

    def look(self) -> None:
        """Read what is on the nodes, now that they are Ready."""
        for name, moments in self.nodes.items():
            node = self._cluster.nodes[name]
            began, moments.cpu = _process(node)
            moments.note("kubelet", began - self._began)
            moments.note("start", _logged(node, "started") - self._began)
            written = node.path(f"{CONFLISTS}/{LIST}").stat().st_mtime
            moments.note("agent", written - self._began)


def _meant(item: Json) -> str:
    """Return the node for which the controller has made a pod, bound or not."""
    affinity = item["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return str(term["matchFields"][0]["values"][0])


def _process(node: Node) -> tuple[float, float]:
    """Return when a node's agent began, and the seconds of a processor that it has had."""
    pid = process_of(node, agent_pods.PROCESS)
    text = node.path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    user, system, began = (int(text[at]) / os.sysconf("SC_CLK_TCK") for at in (11, 12, 19))
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot + began, user + system


def _logged(node: Node, message: str) -> float:
    """Return when the agent of a node has logged a message."""
    for path in node.path("/").glob(_LOGS.lstrip("/")):
        for line in path.read_text().splitlines():
            told = line.partition(" F ")[2]  # of CRI: time, stream, a whole line
            if told.startswith("{") and json.loads(told)["message"] == message:
                return datetime.fromisoformat(json.loads(told)["time"]).timestamp()
    raise AssertionError(f"the agent of {node.name} has not logged {message!r}")


@contextmanager
def followed(cluster: Cluster) -> Iterator[Follower]:
    """Follow what the block applies, until all nodes are Ready. They are not Ready before."""
    follower, wait = Follower(cluster), cluster.api.wait
    with ThreadPoolExecutor() as threads:
        waits = [
            threads.submit(wait, agent_pods.DAEMON_SETS, follower.see_sets, "a DaemonSet"),
            threads.submit(wait, agent_pods.PODS, follower.see_pods, "bound agents"),
            threads.submit(wait, NODES, follower.see_nodes, "Ready nodes"),
        ]
        yield follower
        for one in waits:
            one.result()
    follower.look()


def note(name: str, follower: Follower) -> None:
    """Write the figures of a run for a person."""
    found = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    found[name] = {
        node: {
            **{stage: round(seconds, 3) for stage, seconds in moments.lasted.items()},
            "agent's processor": round(moments.cpu, 2),
            "total": round(moments.total, 3),
        }
        for node, moments in follower.nodes.items()
    }
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")
