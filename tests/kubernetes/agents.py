"""The agent on each node, as a process in the node's namespaces, and what it answers."""

from __future__ import annotations

import http.client
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests import scope
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.daemons import Daemon
from tests.kubernetes.node import CONFLISTS, Node
from tests.machine import DIST, ROOT
from tests.sockets import open_socket
from tests.waits import wait_until

PORT = 9632
LIST = "10-pycni.conflist"
AGENT, ENGINE = "agent", "engine"


@dataclass(frozen=True)
class Way:
    """How pods are connected: the way between nodes, and the plugin of their interfaces."""

    mode: str
    interface: str

    @property
    def name(self) -> str:
        """A name for tests."""
        return f"{self.mode}-{self.interface}"


_PAIRS = (
    (Way("direct", "ptp"), Way("vxlan", "bridge")),
    (Way("direct", "bridge"), Way("vxlan", "ptp")),
)
WAYS = {way.name: way for pair in _PAIRS for way in pair}


def chosen() -> list[str]:
    """Return the names of the ways of this run: a pair, by the day, or in the long form all.

    Kubernetes' own tests take hours by each: they have the first pair.
    """
    if scope.ALL and not scope.UPSTREAM:
        return list(WAYS)
    return [way.name for way in _PAIRS[0 if scope.UPSTREAM else scope.turn() % len(_PAIRS)]]


class Agents:
    """The agents of a cluster."""

    def __init__(self, cluster: Cluster, way: Way, dist: Path = DIST) -> None:
        self.cluster, self.way, self.dist = cluster, way, dist

    def start(self, *nodes: Node) -> None:
        """Start the agent on these nodes, or on all."""
        for node in nodes or self.cluster.nodes.values():
            command = node.entered("env", f"PYTHONPATH={ROOT}", *self._words("run", node))
            daemon = Daemon(command, node.logs / "agent.log", node.environ)
            node.daemons[AGENT] = daemon

    def _words(self, verb: str, node: Node) -> list[str]:
        return [
            *(sys.executable, "-m", "agent", verb, "--node-name", node.name),
            *("--kubeconfig", self.cluster.plane.conf("super-admin")),
            *("--mode", self.way.mode, "--interface", self.way.interface),
            *("--dist", str(self.dist)),
        ]

    def stop(self, *nodes: Node) -> None:
        """End the agent on these nodes, or on all; it leaves everything as it is."""
        for node in nodes or self.cluster.nodes.values():
            node.daemons.pop(AGENT).stop()

    def kill(self, node: Node) -> None:
        """Kill the agent of a node and start it again, as the kubelet does."""
        node.daemons[AGENT].kill()
        self.start(node)

    def restart(self, *nodes: Node) -> None:
        """End the agent and start it again."""
        self.stop(*nodes)
        self.start(*nodes)

    def uninstall(self, *nodes: Node, is_forced: bool = True) -> None:
        """Have the agent take away what it has made; it refuses over pods unless forced."""
        force = ["--force"] if is_forced else []
        for node in nodes or self.cluster.nodes.values():
            node.command("env", f"PYTHONPATH={ROOT}", *self._words("uninstall", node), *force)
            assert_no_groups(node)

    def wait_ready(self, *nodes: Node) -> None:
        """Wait until the agents of these nodes, or of all, say that they are ready."""
        waiting = list(nodes or self.cluster.nodes.values())

        def all_ready() -> bool:
            waiting[:] = [node for node in waiting if answers(node, "/readyz")[0] != 200]
            return not waiting

        wait_until(all_ready, lambda: "not ready: " + "; ".join(map(self._why, waiting)))

    def _why(self, node: Node) -> str:
        """Return what an agent that is not ready says, and how often programs have ended there."""
        status, text = answers(node, "/readyz")
        ended = {name: daemon.ended for name, daemon in node.daemons.items()}
        return f"{node.name}: {status} {text.strip()}, ended: {ended}, agent: {self._state(node)}"

    def _state(self, node: Node) -> str:
        return node.daemons[AGENT].tail(3)


def assert_no_groups(node: Node) -> None:
    """Require that the engine has left no control group."""
    assert not [*node.path("/sys/fs/cgroup").glob("**/pycni-engine")]


def answers(node: Node, path: str) -> tuple[int, str]:
    """Return status and text of the agent's answer, 0 where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT)
    try:
        connection.sock = open_socket(node.netns, "tcp", "127.0.0.1")
        connection.sock.connect(("127.0.0.1", PORT))
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


def process_of(node: Node, pattern: str) -> int:
    """Return the first process of a node whose command line matches; 0 where there is none."""
    for path in sorted(node.path("/proc").iterdir(), key=lambda path: path.name.zfill(10)):
        try:
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, UnicodeError):
            continue
        if path.name.isdecimal() and re.search(pattern, words):
            return int(path.name)
    return 0


def forget_configuration(nodes: Iterable[Node]) -> None:
    """Remove the list of plugins: the runtime has no network then."""
    for node in nodes:
        node.path(f"{CONFLISTS}/{LIST}").unlink(missing_ok=True)
