"""A cluster of kind's in a world of its own: made as docs/kubernetes.md tells, asked by the API."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.node import PATH, Done
from tests.kind import image
from tests.kind.world import SOCKET
from tests.kubernetes.api import NODES, PODS, Api, is_ready
from tests.kubernetes.pods import netns_of
from tests.machine import DIST, ROOT, Json
from tests.runtimes.node import RuntimeNode

DATA = ROOT / "build" / "kind" / "docker"
LOGS = ROOT / "build" / "kind" / "logs"
CONFIG = ROOT / "deploy" / "kubernetes" / "kind.yaml"
MANIFEST = ROOT / "deploy" / "kubernetes" / "pycni.yaml"
UNINSTALL = MANIFEST.with_name("uninstall.yaml")
KIND = image.STORE / "bin" / "kind"
KUBECONFIG = "/run/kubeconfig"
NETWORK = "kind"  # docker's, on which nodes are
CREATE_SECONDS = 400.0
READY_SECONDS = 120.0
AGENTS = "/api/v1/namespaces/kube-system/pods?labelSelector=app.kubernetes.io/name=pycni"


class World(RuntimeNode):
    """The world of tests/kind/world.py, whose network is that of this process."""

    def __init__(self) -> None:
        super().__init__(DIST)

    def sandbox(self) -> list[str | Path]:
        """Return the command that is the world."""
        return ["unshare", "--mount", sys.executable, "-m", "tests.kind.world", DATA]

    def run_tool(self, *words: str | Path, seconds: float = 60, stdin: str = "") -> Done:
        """Run docker or kind in the world."""
        env = {
            "DOCKER_HOST": SOCKET,
            "KUBECONFIG": KUBECONFIG,
            "HOME": "/run/home",
            "TMPDIR": "/run/tmp",
        }
        return self.run(
            *words, env={**env, "PATH": f"{image.PROGRAMS}:{PATH}"}, seconds=seconds, stdin=stdin
        )

    def tool(self, *words: str | Path, seconds: float = 60) -> str:
        """Run one of these, which must succeed, and return what it prints."""
        done = self.run_tool(*words, seconds=seconds)
        assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}{done.stdout}"
        return done.stdout


@dataclass(frozen=True)
class Node:
    """A node of the cluster, as the API has it."""

    name: str
    addresses: tuple[str, ...]  # one for each family
    ranges: tuple[str, ...]

    def address(self, version: int) -> str:
        """Return its address of a family."""
        return next(one for one in self.addresses if (":" in one) == (version == 6))


class Cluster:
    """One cluster: without a network first, then with pycni."""

    def __init__(self, world: World, folder: Path) -> None:
        """Create it. `folder` gets the certificates of the client."""
        self.world = world
        world.tool("docker", "load", "--quiet", "--input", image.made(), seconds=CREATE_SECONDS)
        words = ("create", "cluster", "--config", CONFIG, "--image", image.NAME, "--retain")
        world.tool(KIND, *words, seconds=CREATE_SECONDS)
        self.api = Api(
            json.loads(self.kubectl("config", "view", "--raw", "--output", "json")), folder
        )

    def kubectl(self, *words: str | Path, seconds: float = 60) -> str:
        """Run kubectl as a person does, and return what it prints."""
        return self.world.tool(image.PROGRAMS / "kubectl", *words, seconds=seconds)

    def load(self, archive: Path) -> None:
        """Have all nodes hold an image."""
        self.world.tool(KIND, "load", "image-archive", archive, seconds=CREATE_SECONDS)

    def on(self, node: str, *words: str) -> Done:
        """Run a command on a node."""
        return self.world.run_tool("docker", "exec", node, *words)

    # --- what the API has ---

    def nodes(self) -> dict[str, Node]:
        """Return all nodes by name."""
        return {item["metadata"]["name"]: _node(item) for item in self.api.list(NODES)}

    def wait_for_nodes(self, seconds: float = READY_SECONDS) -> None:
        """Wait until all nodes are Ready."""
        self.api.wait(
            NODES, lambda found: all(map(is_ready, found.values())), "nodes are Ready", seconds
        )

    def start(self, *objects: Json, seconds: float = READY_SECONDS) -> list[Pod]:
        """Create pods in the namespace default, and return them when all are Ready."""
        names = [body["metadata"]["name"] for body in objects]
        for body in objects:
            self.api.create(PODS, body)
        found = self.api.wait(
            PODS,
            lambda pods: all(name in pods and is_ready(pods[name]) for name in names),
            f"{', '.join(names)} are Ready",
            seconds,
        )
        return [_pod(found[name]) for name in names]

    def clear(self, services: Sequence[str] = ()) -> None:
        """Delete all pods of the namespace default, and some Services."""
        for name in services:
            self.api.delete(f"/api/v1/namespaces/default/services/{name}")
        self.api.delete(PODS)
        self.api.wait(PODS, lambda found: not found, "pods are gone")

    # --- failures ---

    def restart_elsewhere(self, node: str) -> None:
        """Restart a node by docker, and have it get another address."""
        form = f'{{{{(index .NetworkSettings.Networks "{NETWORK}").IPAddress}}}}'
        before = self.world.tool("docker", "inspect", "--format", form, node).strip()
        self.world.tool("docker", "stop", node)
        # Another container takes the address: docker gives the lowest that is free.
        words = (
            "run",
            "--detach",
            "--network",
            NETWORK,
            "--name",
            "squatter",
            "--entrypoint",
            "sleep",
        )
        self.world.tool("docker", *words, image.NAME, "infinity")
        self.world.tool("docker", "start", node)
        after = self.world.tool("docker", "inspect", "--format", form, node).strip()
        assert after != before, f"{node} has its old address"

    def write_logs(self, folder: Path) -> None:
        """Write what tells why a test has failed."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, words in _STATE.items():
            done = self.world.run_tool(image.PROGRAMS / "kubectl", *words.split())
            (folder / f"{name}.txt").write_text(done.stdout + done.stderr)
        for node in self.world.run_tool(KIND, "get", "nodes").stdout.split():
            for name, words in _STATE_OF_NODE.items():
                done = self.on(node, "sh", "-c", words)
                (folder / f"{node}-{name}.txt").write_text(done.stdout + done.stderr)
            done = self.world.run_tool("docker", "logs", node)
            (folder / f"{node}-container.txt").write_text(done.stdout + done.stderr)


_SYSTEM = "--namespace kube-system"
_AGENTS = "--selector app.kubernetes.io/name=pycni"
_STATE = {
    "objects": "get nodes,pods,services,daemonsets --all-namespaces --output wide",
    "events": "get events --all-namespaces --sort-by .lastTimestamp",
    "agents": f"{_SYSTEM} logs {_AGENTS} --tail 200 --prefix",
    "agents-described": f"{_SYSTEM} describe pods {_AGENTS}",
}
_STATE_OF_NODE = {
    "journal": "journalctl --no-pager --lines 1000",
    "network": "ip address; ip route; ip -6 route; nft list ruleset",
    "files": "ls -lR /etc/cni /opt/cni/bin /run/pycni /var/lib/cni; tail /etc/cni/net.d/*",
    "engine": "cat /run/pycni/engine.log",
}


@dataclass(frozen=True)
class Pod:
    """A pod that is Ready."""

    name: str
    node: str
    addresses: tuple[str, ...]
    netns: str  # as this process finds it

    def address(self, version: int) -> str:
        """Return its address of a family."""
        return next(one for one in self.addresses if (":" in one) == (version == 6))


def _pod(item: Json) -> Pod:
    addresses = tuple(entry["ip"] for entry in item["status"]["podIPs"])
    uid = item["metadata"]["uid"].replace("-", "_")  # as systemd's names of groups have it
    return Pod(item["metadata"]["name"], item["spec"]["nodeName"], addresses, netns_of(uid))


def _node(item: Json) -> Node:
    addresses = [
        one["address"] for one in item["status"]["addresses"] if one["type"] == "InternalIP"
    ]
    return Node(item["metadata"]["name"], tuple(addresses), tuple(item["spec"].get("podCIDRs", ())))


def outside(world: World, version: int) -> str:
    """Return the address that this process's own network has on docker's network of the nodes."""
    network = world.tool("docker", "network", "inspect", "--format", "{{.Id}}", NETWORK)
    text = world.tool("ip", "-json", "address", "show", "dev", f"br-{network[:12]}")
    found = json.loads(text)[0]["addr_info"]
    family = {4: "inet", 6: "inet6"}[version]
    return next(
        str(one["local"]) for one in found if one["family"] == family and one["scope"] == "global"
    )


def required() -> str:
    """Return why there can be no cluster of kind's here, "" where there can be one."""
    if os.geteuid():
        return "needs root: namespaces, cgroups and mounts of its own"
    if not (image.PROGRAMS / "complete").exists():
        return f"{image.PROGRAMS} is not there: run deploy/prerequisites.sh --kubernetes"
    if not KIND.exists() or image.base() is None:
        return f"{image.STORE} is not complete: run deploy/prerequisites.sh --kind"
    return ""
