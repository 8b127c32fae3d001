"""Containerd on a node: the daemon, and what ctr does."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

from tests.e2e.node import PATH, Done
from tests.runtimes import image
from tests.runtimes.node import BIN, RuntimeNode, eventually

SOCKET = "/run/containerd.sock"
# Containers ask for no share of the processor: below a cgroup that has processes, as the caller's
# may, version 2 has none to give.
RUN = ("run", "--cpu-shares", "0", "--cni", "--rm")
_BOTH = f"""\
root = "/run/containerd/root"
state = "/run/containerd/state"
[grpc]
  address = "{SOCKET}"
[ttrpc]
  address = "{SOCKET}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "/run/containerd/opt"
"""
_CONFIG_1 = f"""\
version = 2
{_BOTH}\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image.NAME}"
  disable_tcp_service = true
  restrict_oom_score_adj = true
  disable_cgroup = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{BIN}"
    conf_dir = "/etc/cni/net.d"
"""
_CONFIG_2 = f"""\
version = 3
{_BOTH}\
[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{image.NAME}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_cgroup = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{BIN}"]
  conf_dir = "/etc/cni/net.d"
"""


class Containerd:
    """The daemon on a node, with the test image in both of its namespaces."""

    def __init__(self, node: RuntimeNode, programs: Path | None = None) -> None:
        """`programs` is the folder of a containerd 2; None: Debian's, of release 1.6."""
        self.node = node
        self._environ = ("env", f"PATH={programs}:{PATH}") if programs else ()
        config = _CONFIG_2 if programs else _CONFIG_1
        node.path("/run/containerd.toml").write_text(config)
        image.write(node.path("/run/image.tar"))
        self.start()
        for namespace in ("default", "k8s.io"):
            self.ok("--namespace", namespace, "image", "import", "/run/image.tar")

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        words = ("containerd", "--config", "/run/containerd.toml")
        self._daemon = self.node.start(*self._environ, *words, log="containerd")
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
        line = (*self._environ, "ctr", "--address", SOCKET, *words)
        return self.node.run(*line, env={"TMPDIR": "/run/tmp"})

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
