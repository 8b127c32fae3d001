"""Containerd on a node: the daemon, and what ctr does."""

from __future__ import annotations

import subprocess
import uuid

from tests.e2e.node import Done
from tests.runtimes import image
from tests.runtimes.node import BIN, RuntimeNode, eventually

SOCKET = "/run/containerd.sock"
# Containers ask for no share of the processor: below a cgroup that has processes, as the caller's
# may, version 2 has none to give.
RUN = ("run", "--cpu-shares", "0", "--cni", "--rm")
_CONFIG = f"""\
version = 2
root = "/run/containerd/root"
state = "/run/containerd/state"
[grpc]
  address = "{SOCKET}"
[ttrpc]
  address = "{SOCKET}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "/run/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image.NAME}"
  disable_tcp_service = true
  restrict_oom_score_adj = true
  disable_cgroup = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{BIN}"
    conf_dir = "/etc/cni/net.d"
"""


class Containerd:
    """The daemon on a node, with the test image in both of its namespaces."""

    def __init__(self, node: RuntimeNode) -> None:
        self.node = node
        node.path("/run/containerd.toml").write_text(_CONFIG)
        image.write(node.path("/run/image.tar"))
        self.start()
        for namespace in ("default", "k8s.io"):
            self.ok("--namespace", namespace, "image", "import", "/run/image.tar")

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        words = ("containerd", "--config", "/run/containerd.toml")
        self._daemon = self.node.start(*words, log="containerd")
        eventually(self._answers, "containerd answers")

    def _answers(self) -> bool:
        assert self._daemon.poll() is None, self.log()
        return self.ctr("version").returncode == 0

    def stop(self) -> None:
        """End the daemon, and not its containers."""
        self.node.command("pkill", "-TERM", "-x", "containerd")
        self._daemon.wait(60)

    def log(self) -> str:
        """Return what the daemon has said."""
        return self.node.path("/run/containerd.log").read_text()

    def ctr(self, *words: str) -> Done:
        """Run ctr."""
        return self.node.run("ctr", "--address", SOCKET, *words, env={"TMPDIR": "/run/tmp"})

    def start_ctr(self, *words: str, log: str) -> subprocess.Popen[bytes]:
        """Start ctr in the background; its output is in /run/LOG.log of the node."""
        return self.node.start("ctr", "--address", SOCKET, *words, log=log)

    def execute(self, container: str, *words: str) -> str:
        """Return what a command prints in a container that ctr has made, failed or not."""
        name = uuid.uuid4().hex
        return self.ctr("task", "exec", "--exec-id", name, container, *words).stdout

    def ok(self, *words: str) -> str:
        """Run ctr, which must succeed, and return what it prints."""
        done = self.ctr(*words)
        assert done.returncode == 0, f"ctr {' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout
