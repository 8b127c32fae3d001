"""Process 1 of a node: makes the node's mounts, says that they are there, and collects orphans.

    unshare --net --mount --pid --ipc --uts --cgroup --fork --kill-child --mount-proc -- \\
        python -m tests.kubernetes.boot NAME DISK

DISK is a directory that outlives the node: it gets all that is written below /etc, /opt and /var.
To end a node and to boot it again with the same disk is a reboot. /run is empty at each boot.
"""

# ruff: noqa: T201, TID251  # a program of its own, which is its process's edge

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.runtimes.sandbox import RUNTIMES, hierarchies, mount, mount_cgroups

# The kubelet sets these for the whole machine. The node has files in their place.
MACHINE_WIDE = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
# An overlay cannot have its upper layer on another one, as containers have below these.
PLAIN = ("/var/lib/containerd", "/var/lib/kubelet")
# Other programs of the machine may have left networks and plugins there.
FOREIGN = ("/etc/cni", "/etc/containerd", "/opt/cni", "/var/lib/cni")


def overlay(directory: str, upper: Path | None = None) -> None:
    """Lay what deploy/prerequisites.sh has unpacked over a directory; writes go to `upper`."""
    below = [RUNTIMES / directory.strip("/"), Path(directory)]
    options = "lowerdir=" + ":".join(str(path) for path in below if path.is_dir())
    if upper:
        work = upper.with_name(f".work-{upper.name}")
        for path in (upper, work):
            path.mkdir(parents=True, exist_ok=True)
        options += f",upperdir={upper},workdir={work}"
    mount("-t", "overlay", "-o", options, "overlay", directory)


def make_files(disk: Path) -> None:
    """Mount the node's directories."""
    first_boot = not disk.exists()
    overlay("/usr")
    for directory in ("/etc", "/opt", "/var"):
        overlay(directory, disk / directory.strip("/"))
    for directory in PLAIN:
        source = disk / f"plain-{Path(directory).name}"
        for path in (source, Path(directory)):
            path.mkdir(parents=True, exist_ok=True)
        mount("--bind", source, directory)
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    if first_boot:
        for directory in FOREIGN:
            shutil.rmtree(directory, ignore_errors=True)
    for directory in ("/run/netns", "/run/lock", "/run/tmp", "/run/home"):
        Path(directory).mkdir()
    for directory in ("/opt/cni/bin", "/etc/cni/net.d", "/etc/kubernetes"):
        Path(directory).mkdir(parents=True, exist_ok=True)


def hide_machine_wide_sysctls() -> None:
    """Bind files over the sysctls that are not the node's own."""
    for name, value in MACHINE_WIDE.items():
        file = Path("/run", f"sysctl-{name.replace('/', '-')}")
        file.write_text(f"{value}\n")
        mount("--bind", file, f"/proc/sys/{name}")


def mount_sys() -> None:
    """Mount /sys anew: it shows the namespaces of the process that mounts it."""
    while os.path.ismount("/sys"):  # what is hidden below stays in mountinfo, and misleads readers
        subprocess.run(["umount", "--recursive", "--lazy", "/sys"], check=True)
    mount("-t", "sysfs", "sysfs", "/sys")
    groups = mount_cgroups(hierarchies())
    for hierarchy, mountpoint in groups.items():
        if not hierarchy.controllers and len(groups) == 1:
            delegate_controllers(mountpoint)


def delegate_controllers(group: Path) -> None:
    """Give version 2's controllers to the children: only a group without processes may."""
    (group / "daemons").mkdir()
    for pid in (group / "cgroup.procs").read_text().split():
        (group / "daemons" / "cgroup.procs").write_text(pid)
    for controller in (group / "cgroup.controllers").read_text().split():
        (group / "cgroup.subtree_control").write_text(f"+{controller}")


def name_node(name: str) -> None:
    """Give the node its names and an identity of its own."""
    subprocess.run(["hostname", name], check=True)
    Path("/etc/hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n")
    Path("/etc/resolv.conf").write_text("")
    Path("/etc/machine-id").write_text(hashlib.md5(name.encode()).hexdigest() + "\n")


def collect_orphans() -> None:
    """Wait for all that ends, for ever."""
    while True:
        signal.sigwait({signal.SIGCHLD})
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def main(name: str, disk: Path) -> None:
    """Be a node until the process is killed."""
    os.umask(0o022)
    mount_sys()
    make_files(disk)
    hide_machine_wide_sysctls()
    mount("--make-rshared", "/")  # pods may ask for propagation of their mounts
    name_node(name)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    print("ready", flush=True)
    collect_orphans()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
