"""A node with the agent on it, as the DaemonSet would run it: its files, namespaces and engine."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.node import Node
from tests.machine import DIST, ROOT
from tests.sockets import open_socket
from tests.waits import GENEROUS, wait_until

Json = dict[str, Any]

LIST = "/etc/cni/net.d/10-pycni.conflist"
STATE = "/var/lib/cni/pycni-agent"
BINS = "/opt/cni/bin"
PORT = 9632
OWN4 = "192.0.2.11"
RANGES = ("10.244.1.0/24", "fd00:10:244:1::/64")


def member(name: str, number: int, *ranges: str) -> Json:
    """Return a node as the agent remembers it."""
    return {
        "name": name,
        "uid": f"uid-{name}",
        "addresses": [f"192.0.2.1{number}", f"2001:db8::1{number}"],
        "ranges": list(ranges),
        "public_key": "",
    }


OTHER = member("b", 2, "10.244.2.0/24", "fd00:10:244:2::/64")


class AgentHost:
    """A node whose agent knows the cluster from its state on the disk: the API server is away."""

    def __init__(
        self, program: Path | None = None, node: Node | None = None, *, number: int = 1
    ) -> None:
        """`program` is the frozen agent; None: the agent from the sources.

        `node` is a node with plugins, None: one of its own, without any. `number` is the last digit
        of its addresses, and gives it its name: 1 is node a.
        """
        self.node = node or Node(DIST)
        self.dist = DIST
        self.program, self.number = program, number
        self.name = chr(ord("a") + number - 1)
        self.addresses = (f"192.0.2.1{number}", f"2001:db8::1{number}")
        self.api_server = "192.0.2.250:6443"  # where nobody answers
        self._agent: subprocess.Popen[bytes] | None = None
        script = f"""
            {"" if node else "mkdir -p /opt && mount -t tmpfs -o mode=755 tmpfs /opt"}
            mkdir -p -m 700 {STATE}
            ip link add uplink type veth peer name beyond
            echo 0 >/proc/sys/net/ipv6/conf/uplink/accept_dad
            ip address add {self.addresses[0]}/24 dev uplink
            ip address add {self.addresses[1]}/64 dev uplink nodad
            ip link set uplink up
            ip link set beyond up
            """
        self.node.command("sh", "-ec", script)

    def close(self) -> None:
        """End the node."""
        if self._agent:
            self._agent.kill()
            self._agent.wait()
        self.node.close()

    # --- the agent ---

    def remember(self, own: Json, *others: Json, runtime: str = "containerd://2.4.2") -> None:
        """Have the next agent find this cluster."""
        found = {"format": 1, "runtime": runtime, "own": own, "others": list(others)}
        path = self.path(f"{STATE}/cluster.json")
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text(json.dumps(found))

    def words(self, *options: str) -> list[str]:
        """Return the command line of the agent."""
        words = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "agent"]
        words = [str(self.program)] if self.program else words
        words += [
            *options,
            *("--node-name", self.name),
            *("--api-server", self.api_server),
            "--dist",
            str(self.dist),
        ]
        return self.node.entered(*words)

    def start(self, *options: str) -> None:
        """Start the agent."""
        with self.path("/run/agent.log").open("ab") as log:
            self._agent = subprocess.Popen(
                self.words(*options), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def stop(self) -> int:
        """Have it end, and return its exit status."""
        assert self._agent
        for pid in self.children_of(self._agent.pid):
            os.kill(pid, signal.SIGTERM)
        status = self._agent.wait(GENEROUS)
        self._agent = None
        return status

    def kill(self) -> None:
        """Kill it at once."""
        assert self._agent
        for pid in self.children_of(self._agent.pid):
            os.kill(pid, signal.SIGKILL)
        self._agent.wait(GENEROUS)
        self._agent = None

    @staticmethod
    def children_of(pid: int) -> list[int]:
        """Return the agent itself: nsenter waits for it in the first process."""
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(word) for word in text.split()] or [pid]

    def pid(self) -> int:
        """Return its process id, here."""
        assert self._agent
        (found,) = self.children_of(self._agent.pid)
        return found

    def uninstall(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `uninstall` to its end."""
        return subprocess.run(
            self.words("uninstall", *options),
            capture_output=True,
            text=True,
            timeout=GENEROUS,
            check=False,
        )

    def log(self) -> list[Json]:
        """Return what it has logged."""
        lines = self.path("/run/agent.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of an answer, 0 where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1")
        with open_socket(self.node.netns(), "tcp", "127.0.0.1") as sock:
            sock.settimeout(GENEROUS)
            try:
                sock.connect(("127.0.0.1", PORT))
            except ConnectionRefusedError:
                return 0, ""
            connection.sock = sock
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def wait_ready(self, seconds: float = GENEROUS, pause: float = 0.005) -> None:
        """Wait until /readyz says yes, as `wait_until` does."""
        wait_until(lambda: self.get("/readyz")[0] == 200, self._why, seconds, pause)

    def _why(self) -> str:
        return f"the agent of {self.name} is not ready: {self.get('/readyz')[1]}"

    def metric(self, name: str) -> float:
        """Return the value of a metric, with its labels; 0 where it is not there."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0

    # --- the node ---

    def path(self, name: str) -> Path:
        """Return where a file of the node is to be found from here."""
        return self.node.path(name)

    def list(self) -> Json:
        """Return the list of plugins."""
        found: Json = json.loads(self.path(LIST).read_text())
        return found

    def ipam(self) -> Json:
        """Return the IPAM part of its first plugin."""
        found: Json = self.list()["plugins"][0]["ipam"]
        return found

    def ipam_directory(self) -> Path:
        """Return host-local's directory of the network."""
        return self.path("/var/lib/cni/networks/pycni")

    def call(
        self, verb: str, container: str, found: Json | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Have the interface plugin of the list serve a container, as a runtime does.

        `found` is the list where the runtime has read it before.
        """
        found = found or self.list()
        config = {"cniVersion": found["cniVersion"], "name": found["name"], **found["plugins"][0]}
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": BINS,
        }
        program = f"{BINS}/{config['type']}"
        return self.node.run(program, stdin=json.dumps(config), env=environ)

    def engine(self) -> int:
        """Return the process id of the engine that holds the socket, in the node; 0 for none."""
        script = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r});"
            "from cni_common.serve.engine import lock_owner;"
            "print(max(lock_owner('/run/pycni/engine.lock'), 0))"
        )
        return int(self.node.command(sys.executable, "-c", script))
