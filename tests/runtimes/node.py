"""RuntimeNode: a pretend host on which container runtimes run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.node import PATH, STAYS, Node
from tests.machine import Json
from tests.runtimes import image
from tests.runtimes.sandbox import joining

SANDBOX = Path(__file__).with_name("sandbox.py")
BIN = "/opt/cni/bin"  # where the node has its plugins
SECONDS = 300.0  # how long anything may take; only failures wait so long


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
        return ["unshare", "--mount", sys.executable, SANDBOX, self.bin_dir]

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
        """Start a command that goes on; its output is in /run/LOG.log of the node."""
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

    def state(self, *bridges: str) -> dict[str, list[str]]:
        """Return what containers could leave on the node, but for `bridges` of their networks."""
        routes = [*self.ip("", "route", "show", "table", "all")]
        routes += self.ip("", "-6", "route", "show", "table", "all")
        routes = [one for one in routes if one["dev"] not in bridges and not _is_of_uplink(one)]
        rules = [*self.ip("", "rule"), *self.ip("", "-6", "rule")]
        queues = json.loads(self.command("tc", "-j", "qdisc", "show"))
        return {
            "links": [name for name in self.links("") if name not in bridges],
            "routes": sorted(map(_route, routes)),
            "rules": sorted(map(str, rules)),
            "queues": sorted(
                f"{one['dev']} {one['kind']}" for one in queues if one["dev"] not in bridges
            ),
            "firewall": self.firewall(),
            "namespaces": sorted(path.name for path in self.path("/run/netns").iterdir()),
            "mounts": [line for line in self._mounts() if " nsfs " in line],
            "files": sorted(name for name in self.files() if not STAYS.fullmatch(name)),
        }

    def _mounts(self) -> list[str]:
        return Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()

    def assert_as_before(self, before: Mapping[str, Sequence[str]], *bridges: str) -> None:
        """Require that nothing has come or gone since `state()` returned `before`."""
        now = self.state(*bridges)
        come = {key: [one for one in now[key] if one not in before[key]] for key in now}
        gone = {key: [one for one in before[key] if one not in now[key]] for key in now}
        assert now == before, f"came: {come}, went: {gone}"

    # --- the world ---

    def get(self, url: str, netns: str = "") -> str:
        """Return what a web server answers the node or another client, "" when none does."""
        words = ("timeout", "30", "busybox", "wget", "-q", "-O", "-", f"http://{url}")
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


def _is_of_uplink(route: Json) -> bool:
    """Tell whether the kernel makes a route by itself, late for IPv6, or when it forwards."""
    return (route["dev"], route["protocol"]) == ("up0", "kernel")


def _route(route: Json) -> str:
    """Return what a route says that does not change by itself."""
    keys = ("type", "dst", "gateway", "dev", "table", "protocol", "scope", "prefsrc", "metric")
    return json.dumps({key: route[key] for key in keys if key in route})


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
