"""RuntimeNode: a pretend host on which container runtimes run."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.node import PATH, Node
from tests.runtimes import image
from tests.runtimes.sandbox import joining

SANDBOX = Path(__file__).with_name("sandbox.py")
BIN = "/opt/cni/bin"  # where the node has its plugins
SECONDS = 60.0  # how long anything may take; only failures wait so long


def eventually(happened: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


class RuntimeNode(Node):
    """A pretend host made by sandbox.py: all that runs on it ends with it."""

    def __init__(self, bin_dir: Path) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        super().__init__(bin_dir)

    def sandbox(self) -> list[str | Path]:
        """Return the command that is the node."""
        return ["unshare", "--mount", SANDBOX, self.bin_dir]

    def enter(self, line: bytes) -> list[str]:
        """Return what runs a command on the node, in its cgroups."""
        assert line, "the node cannot be made; its messages are above"
        told = json.loads(line)
        self.pid = told["pid"]
        # The machine's root, with the mounts of the process that watches over the node.
        groups = [Path(f"/proc/{self._holder.pid}/root{group}") for group in told["groups"]]
        kinds = ("net", "mount", "pid", "cgroup", "ipc", "uts")
        return joining(groups, "nsenter", *self.namespaces(*kinds), "--")

    def start(self, *words: str | Path, log: str) -> subprocess.Popen[bytes]:
        """Start a command that goes on; what it says is in /run/LOG.log of the node."""
        with self.path(f"/run/{log}.log").open("ab") as output:
            process = subprocess.Popen(
                self.entered(*words),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"PATH": PATH, "HOME": "/run/home", "TMPDIR": "/run/tmp"},
            )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End the node."""
        super().close()
        for process in self._started:
            process.wait()

    # --- the world ---

    def get(self, url: str, netns: str = "") -> str:
        """Return what a web server answers the node or somebody else, "" when nothing does."""
        words = ("timeout", "5", "busybox", "wget", "-q", "-O", "-", f"http://{url}")
        return self.run(*words, netns=netns).stdout.strip()

    def serve_outside(self) -> str:
        """Return the namespace of a host outside with a web server; see Node.outside."""
        netns = self.outside()
        for name in ("www/hello", "www/cgi-bin/who"):
            text, mode = image.FILES[name]
            path = self.path(f"/run/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(mode)
        self.command("busybox", "httpd", "-p", "80", "-h", "/run/www", netns=netns)
        return netns


@contextmanager
def runtime_node(bin_dir: Path) -> Iterator[RuntimeNode]:
    """Give a node whose /opt/cni/bin is `bin_dir`, with an engine where only that can serve."""
    node = RuntimeNode(bin_dir)
    try:
        if not (bin_dir / ".pycni").exists():
            node.start_engine()
        yield node
    finally:
        node.close()
