"""Be a node on which container runtimes can run: cgroups, programs and directories of its own.

    unshare --mount python3 tests/runtimes/sandbox.py BIN_DIR

Prints one line of JSON when the node is there: `pid`, a process with the node's namespaces, and
`groups`, the cgroups of its processes, as this program sees them. The node ends with stdin, and
with it all that runs there. It is tests/in-sandbox with more of its own:
  /usr, /etc          the machine's, and what deploy/prerequisites.sh has put into .tools/runtimes
  /opt/cni/bin        a copy of BIN_DIR
  /opt, /var/lib      the machine's; what is written into any of these is gone in the end
  /run, /dev/shm, /etc/cni, /var/lib/cni, /var/lib/containers, /usr/lib/cni      empty
  /sys/fs/cgroup      a group of its own in each hierarchy, version 1 or 2
"""

# ruff: noqa: T201, TID251  # a program of its own, which may read and end its process

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = ROOT / ".tools" / "runtimes"
CGROUPS = Path("/sys/fs/cgroup")
REMOVAL_SECONDS = 20.0
JOIN = 'for group in $0; do echo 0 >"$group/cgroup.procs" || exit; done; exec "$@"'


@dataclass(frozen=True)
class Hierarchy:
    """One of the kernel's trees of cgroups, and where in it this process is."""

    controllers: str  # "" for version 2, else as the mount option names them
    home: str

    @property
    def mountpoint(self) -> Path:
        """Where programs look for it; version 2 alone has the directory for itself."""
        return CGROUPS / (self.controllers.removeprefix("name=") or "unified")


def hierarchies() -> list[Hierarchy]:
    """Return those that this process is in, which are all."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return [Hierarchy(*line.split(":", 2)[1:]) for line in lines]


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def mount_cgroups(found: list[Hierarchy]) -> dict[Hierarchy, Path]:
    """Mount all hierarchies at their usual places; return these."""
    if [hierarchy.controllers for hierarchy in found] == [""]:
        if not CGROUPS.is_mount():  # in tests/vm it is, as nothing hides the machine's
            mount("-t", "cgroup2", "cgroup2", CGROUPS)
        return {found[0]: CGROUPS}
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", CGROUPS)
    for hierarchy in found:
        hierarchy.mountpoint.mkdir()
        if hierarchy.controllers:
            mount("-t", "cgroup", "-o", hierarchy.controllers, "cgroup", hierarchy.mountpoint)
        else:
            mount("-t", "cgroup2", "cgroup2", hierarchy.mountpoint)
    return {hierarchy: hierarchy.mountpoint for hierarchy in found}


# ---- outside: what has to outlive the node --------------------------------------------------


def make_group(hierarchy: Hierarchy, mountpoint: Path, name: str) -> Path:
    """Make the node's cgroup of a hierarchy, below this process's own."""
    group = mountpoint / hierarchy.home.strip("/") / name
    group.mkdir()
    for limits in ("cpuset.cpus", "cpuset.mems"):
        # In version 1 they are empty at first, and then no process may enter.
        if hierarchy.controllers and (group / limits).exists():
            (group / limits).write_text((group.parent / limits).read_text())
    if not hierarchy.controllers:
        # Version 2 gives controllers only to children of a group that has no processes itself.
        (group / "processes").mkdir()
    return group


def remove_group(group: Path) -> None:
    """Remove a cgroup and those below it, once the last of their processes have left."""
    deadline = time.monotonic() + REMOVAL_SECONDS
    while group.exists():
        for folder, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)
        if time.monotonic() > deadline:
            print(f"sandbox.py: {group} stays", file=sys.stderr)
            return
        time.sleep(0.02)


def move_to_leaf(group: Path) -> str:
    """Move what a group has into the one below it for processes, and return where they are."""
    leaf = group / "processes"
    if not leaf.exists():
        return str(group)
    for pid in (group / "cgroup.procs").read_text().split():
        (leaf / "cgroup.procs").write_text(pid)
    return str(leaf)


def joining(groups: list[Path], *command: str | Path) -> list[str]:
    """Return the command line that starts a command in these cgroups."""
    return ["sh", "-c", JOIN, " ".join(map(str, groups)), *map(str, command)]


def outside(bin_dir: str) -> int:
    """Run the node until stdin ends; return its exit status."""
    sandbox = ("unshare", "--cgroup", "--ipc", "--uts", "--", ROOT / "tests" / "in-sandbox")
    return watch(*sandbox, sys.executable, __file__, "--inside", bin_dir)


def watch(*command: str | Path) -> int:
    """Run a command in cgroups of its own, and tell once it is ready; return its exit status."""
    groups: list[Path] = []
    name = f"pycni-node-{uuid.uuid4().hex[:12]}"
    try:
        for hierarchy, mountpoint in mount_cgroups(hierarchies()).items():
            groups.append(make_group(hierarchy, mountpoint, name))
        node = subprocess.Popen(joining(groups, *command), stdout=subprocess.PIPE)
        assert node.stdout is not None
        if node.stdout.readline() == b"ready\n":
            leaves = [move_to_leaf(group) for group in groups]
            print(json.dumps({"pid": node.pid, "groups": leaves}), flush=True)
        return node.wait()
    finally:
        for group in groups:
            remove_group(group)


# ---- inside ---------------------------------------------------------------------------------


def overlay(directory: str, *, writable: bool, above: Path = RUNTIMES) -> None:
    """Lay what was unpacked in `above` over a directory, and let writes go to memory."""
    below = [above / directory.strip("/"), Path(directory)]
    options = "lowerdir=" + ":".join(str(path) for path in below if path.is_dir())
    if writable:
        layer = Path("/run/layers", directory.strip("/").replace("/", "-"))
        for name in ("upper", "work"):
            (layer / name).mkdir(parents=True)
        options += f",upperdir={layer}/upper,workdir={layer}/work"
    mount("-t", "overlay", "-o", options, "overlay", directory)


def inside(bin_dir: str) -> int:
    """Make the node's files, then wait."""
    mount_cgroups(hierarchies())
    bin_dir = os.path.realpath(bin_dir)
    overlay("/usr", writable=True)
    for directory in ("/etc", "/opt", "/var/lib"):
        overlay(directory, writable=True)
    shutil.rmtree("/opt/cni/bin", ignore_errors=True)  # which the machine may have, too
    Path("/opt/cni/bin").mkdir(parents=True)
    # ctr looks for plugins in /usr/lib/cni, too, where Debian's must not stand in for ours; and
    # podman's store of images is overlays again, which are not made on top of one another.
    for directory in ("/usr/lib/cni", "/etc/cni", "/var/lib/cni", "/var/lib/containers"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", directory)
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")  # podman's locks
    subprocess.run(["cp", "-a", f"{bin_dir}/.", "/opt/cni/bin"], check=True)
    for directory in ("/etc/cni/net.d", "/run/tmp", "/run/home"):
        Path(directory).mkdir()
    subprocess.run(["hostname", "node"], check=True)
    print("ready", flush=True)
    sys.stdin.buffer.read()
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    raise SystemExit(inside(words[1]) if words[0] == "--inside" else outside(words[0]))
