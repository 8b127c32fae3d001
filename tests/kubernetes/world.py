"""The world around the nodes: its files, its bridge, and the host outside that it is itself.

pytest runs inside of it, by tests/in-sandbox. Its namespace is the network between the nodes. As
there is no route to any pod in it, it is a host outside of the cluster, too. The control plane is
in it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.machine import ROOT, TOOLS
from tests.runtimes.sandbox import Hierarchy, hierarchies, mount_cgroups

ADDRESS4, ADDRESS6 = "172.30.0.1", "fd00:30::1"
PODS4, PODS6 = "10.244.0.0/16", "fd00:10:244::/56"
SERVICES4, SERVICES6 = "10.96.0.0/16", "fd00:10:96::/112"
DNS4 = "10.96.0.10"
BRIDGE = "underlay"
OWN_NETNS = "/proc/self/ns/net"
PROGRAMS = TOOLS / "kubernetes" / "current"
CONTAINERD_2 = TOOLS / "containerd"  # folder of the newer of both releases
LOGS = ROOT / "build" / "kubernetes" / "logs"
# A place that each mount namespace of the nodes shares: it outlives a node, as a disk does.
FILES = Path("/mnt")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(*words: str | Path, stdin: str = "", seconds: float = 60) -> str:
    """Run a command in the world; it must succeed. Return what it prints."""
    done = subprocess.run(
        list(map(str, words)),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}{done.stdout}"
    return done.stdout


class World:
    """One world: made once for a run of pytest."""

    def __init__(self) -> None:
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", FILES)
        self.files = FILES
        # As this process sees them: nodes get groups of their own below it.
        self.groups: dict[Hierarchy, Path] = mount_cgroups(hierarchies())
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        for name in (
            f"net/ipv6/conf/{BRIDGE}/accept_dad=0",
            "net/ipv4/ip_forward=1",
            "net/ipv6/conf/all/forwarding=1",
        ):
            path, _, value = name.partition("=")
            Path("/proc/sys", path).write_text(value)
        run("ip", "link", "set", BRIDGE, "up")
        run("ip", "address", "add", f"{ADDRESS4}/24", "dev", BRIDGE)
        run("ip", "address", "add", f"{ADDRESS6}/64", "dev", BRIDGE, "nodad")

    def clear(self) -> None:
        """Remove the files of a cluster that has ended, gigabytes of memory."""
        for path in self.files.iterdir():
            shutil.rmtree(path)

    def close(self) -> None:
        """Take it away; the nodes have ended."""
        run("ip", "link", "delete", BRIDGE)
        for mountpoint in self.groups.values():
            run("umount", mountpoint)
        run("umount", "-l", FILES)
