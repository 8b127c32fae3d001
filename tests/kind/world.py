"""A world with a docker daemon of its own, in which kind makes clusters.

    unshare --mount python -m tests.kind.world FOLDER

Prints one line of JSON when docker answers: `pid`, a process with the world's namespaces, and
`groups`, the cgroups of its processes, as this program sees them. The world ends with stdin, and
with it all containers.
  network           that of the caller, which tests/in-sandbox has made
  /usr              the machine's, and docker, as deploy/prerequisites.sh has unpacked it
  /etc, /opt, /var/lib      the machine's; what is written into any of these is gone in the end
  /run, /dev/shm    empty
  /sys/fs/cgroup    a group of its own in each hierarchy, version 1 or 2
  /proc/sys         without the right to change what counts for the whole machine
FOLDER gets docker's images and containers; it must not be on an overlay.
"""

# ruff: noqa: T201, TID251  # a program of its own

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.machine import TOOLS
from tests.runtimes.sandbox import hierarchies, mount, mount_cgroups, overlay, watch

DOCKER = TOOLS / "kind" / "docker"
SOCKET = "unix:///run/docker.sock"
LOG = Path("/run/dockerd.log")
START_SECONDS = 60.0
BOUNDED = Path("/run/runc-bounded")
# docker gives a privileged container all capabilities that the kernel knows, and runc fails where
# root of this machine lacks one: CAP_SYS_RESOURCE, in a sandbox. This takes it out of what a
# container or an exec asks for.
_BOUNDED = """\
#!/bin/bash
words=("$@")
while (($#)); do
    case $1 in
        --bundle | -b) file=$2/config.json ;;
        --process | -p) file=$2 ;;
    esac
    shift
done
[[ ! ${file-} ]] || sed -i 's/"CAP_SYS_RESOURCE",\\|,"CAP_SYS_RESOURCE"//g' "$file"
exec runc "${words[@]}"
"""
_SYS_RESOURCE = 24  # its bit, of linux/capability.h


def outside(folder: str) -> int:
    """Run the world until stdin ends; return its exit status."""
    kinds = ("--cgroup", "--ipc", "--uts", "--mount", "--pid")
    # bash is process 1, outlives the program and collects orphans: containerd's shims are some.
    world = (
        "unshare",
        *kinds,
        "--fork",
        "--kill-child",
        "--mount-proc",
        "bash",
        "-c",
        '"$@"; exit',
    )
    return watch(*world, "world", sys.executable, "-m", "tests.kind.world", "--inside", folder)


def inside(folder: str) -> int:
    """Make the world's files, start docker, then wait."""
    make_cgroups_visible()
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    overlay("/usr", writable=True, above=DOCKER)
    for directory in ("/etc", "/opt", "/var/lib"):
        overlay(directory, writable=True, above=DOCKER)
    protect_machine()
    for name in ("home", "tmp", "lock"):
        Path("/run", name).mkdir()
    Path("/usr/lib/modules").mkdir(exist_ok=True)  # nodes mount it
    local = Path("/usr/local/bin/docker")  # another one of the machine would come first
    local.unlink(missing_ok=True)
    local.symlink_to("/usr/bin/docker")
    daemon = start_docker(Path(folder))
    print("ready", flush=True)
    sys.stdin.buffer.read()
    daemon.terminate()
    daemon.wait(START_SECONDS)
    return 0


def make_cgroups_visible() -> None:
    """Leave no mount of a hierarchy but its usual one: docker believes each that it finds."""
    while Path("/sys").is_mount():
        subprocess.run(["umount", "--recursive", "--lazy", "/sys"], check=True)
    mount("-t", "sysfs", "sysfs", "/sys")
    mount_cgroups(hierarchies())


def protect_machine() -> None:
    """Keep dockerd from what is not of a namespace: it raises limits of keys, and loads modules."""
    for tree in ("fs", "kernel", "vm"):
        mount("--bind", f"/proc/sys/{tree}", f"/proc/sys/{tree}")
        mount("-o", "remount,bind,ro", f"/proc/sys/{tree}")
    for name in ("modprobe", "insmod"):
        for directory in ("/usr/sbin", "/usr/bin"):
            program = Path(directory, name)
            if program.exists() or program.is_symlink():
                program.unlink()
                program.symlink_to("/usr/bin/true")


def lacks_sys_resource() -> bool:
    """Tell whether root here has not all capabilities."""
    lines = Path("/proc/self/status").read_text().splitlines()
    bounding = next(line.split()[1] for line in lines if line.startswith("CapBnd:"))
    return not int(bounding, 16) >> _SYS_RESOURCE & 1


def start_docker(folder: Path) -> subprocess.Popen[bytes]:
    """Start the daemon and wait until it answers."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = ["dockerd", "--data-root", str(folder), "--exec-root", "/run/docker"]
    words += ["--pidfile", "/run/docker.pid", "--host", SOCKET]
    if lacks_sys_resource():
        BOUNDED.write_text(_BOUNDED)
        BOUNDED.chmod(0o755)
        words += ["--add-runtime", f"bounded={BOUNDED}", "--default-runtime", "bounded"]
    environ = {"PATH": os.environ["PATH"], "HOME": "/run/home", "TMPDIR": "/run/tmp"}
    with LOG.open("wb") as log:
        daemon = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ
        )
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(["docker", "-H", SOCKET, "version"], capture_output=True).returncode:
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"dockerd does not answer:\n{LOG.read_text()[-4000:]}")
        time.sleep(0.1)
    return daemon


if __name__ == "__main__":
    words = sys.argv[1:]
    raise SystemExit(inside(words[1]) if words[0] == "--inside" else outside(words[0]))
