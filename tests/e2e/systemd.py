"""SystemdNode: a pretend host whose process 1 is systemd."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.machine import DIST
from tests.runtimes.node import BIN, RuntimeNode, eventually

SYSTEMD = Path("/lib/systemd/systemd")
# All that it starts by itself: nothing that looks for devices, sets the clock or mounts.
UNITS = (
    *("basic.target", "multi-user.target", "shutdown.target", "sockets.target", "sysinit.target"),
    *("systemd-journald.service", "systemd-journald.socket"),
)
# Becomes process 1, in a cgroup that it has for itself.
ENTER = """
set -e
for path in /sys/fs/cgroup/* /sys/fs/cgroup; do ! mountpoint -q "$path" || umount "$path"; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd /sys/fs/cgroup
sed 's/[^ ]*/+&/g' cgroup.controllers >cgroup.subtree_control
mkdir systemd
echo $$ >systemd/cgroup.procs
cd /
umount /sys/fs/cgroup
exec unshare --cgroup sh -c "$3" sh "$1" "$2"
"""
# Then this. Objects that no namespace keeps apart are read-only, as under systemd-nspawn: systemd
# leaves /proc/sys, devices, modules, clock and the kernel's log of the machine alone.
BOOT = """
set -e
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -o remount,bind,ro /sys
mount --bind /proc/sys /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,ro /proc/sys
[ ! -e /proc/sysrq-trigger ] || mount --bind /dev/null /proc/sysrq-trigger

mkdir /run/dev /run/units
mount -t tmpfs -o mode=755 tmpfs /run/dev
for name in null zero full random urandom tty; do
    touch "/run/dev/$name"
    mount --bind "/dev/$name" "/run/dev/$name"
done
mount --move /run/dev /dev

units=$(realpath "${1%/*}")/system
for unit in $2; do cp "$units/$unit" /run/units; done
for directory in /etc/systemd "$units" "${units%/*}"/*-generators; do
    mount -t tmpfs -o mode=755 tmpfs "$directory"
done
cp /run/units/* "$units"
mkdir -p /etc/systemd/system/sysinit.target.wants
ln -s "$units/multi-user.target" /etc/systemd/system/default.target
ln -s "$units/systemd-journald.service" /etc/systemd/system/sysinit.target.wants
printf '[Journal]\\nStorage=volatile\\nAudit=no\\n' >/etc/systemd/journald.conf
rm -r /opt/cni/bin
exec setpriv --bounding-set -sys_module,-sys_time,-syslog,-audit_control \\
    env -i container=pycni "$1"
"""


class SystemdNode(RuntimeNode):
    """A pretend host made by sandbox.py, with systemd once `boot` was called; no plugins yet."""

    def boot(self) -> None:
        """Start systemd, and from now on run commands beside it."""
        assert SYSTEMD.exists(), f"{SYSTEMD} is missing: deploy/prerequisites.sh --reference"
        unshare = ("unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child")
        arguments = (SYSTEMD, " ".join(UNITS), BOOT)
        process = subprocess.Popen(
            self.entered(*unshare, "sh", "-c", ENTER, "sh", *arguments), stdin=subprocess.DEVNULL
        )
        self._started.append(process)
        eventually(lambda: self._is_process_one(process), "systemd has started")
        kinds = ("net", "mount", "pid", "ipc", "uts")
        enter = ("nsenter", *self.namespaces(*kinds), "--")
        self._enter = [*self._enter[: self._enter.index("nsenter")], *enter]
        self.bin_dir = Path(BIN)
        eventually(
            lambda: self.run("systemctl", "is-system-running").stdout == "running\n",
            "all units of systemd are up",
        )

    def _is_process_one(self, starter: subprocess.Popen[bytes]) -> bool:
        """Tell whether systemd is there, which then is the process that stands for the node."""
        assert starter.poll() is None, "systemd cannot be started; messages are above"
        pid = str(starter.pid)
        for _ in range(2):  # nsenter has unshare for a child, and that systemd
            pid = Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()
            if not pid:
                return False
        self.pid = int(pid)
        return Path(f"/proc/{pid}/comm").read_text() == "systemd\n"

    def property(self, unit: str, name: str) -> str:
        """Return what systemctl shows of a unit."""
        return self.command("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def journal(self, unit: str) -> str:
        """Return the lines of a unit, systemd's about it among them."""
        self.command("journalctl", "--sync")
        return self.command("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")


@contextmanager
def systemd_node() -> Iterator[SystemdNode]:
    """Give a node on which systemd runs, and end it."""
    node = SystemdNode(DIST)
    try:
        node.boot()
        yield node
    finally:
        node.close()
