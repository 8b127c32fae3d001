"""Run a command as root under Linux in user mode: a process, with this machine's files.

Its kernel is the package user-mode-linux of a suite of Debian. What runs under that kernel computes
natively; only system calls and page faults take longer, as one process traces another (ptrace).
"""

# ruff: noqa: TID251  # a program of its own, which may read and end its process

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.vm import boot

SUITES = {"6.12": "trixie", "6.1": "bookworm"}
PACKAGES = ("user-mode-linux", "libc6")
MEMORY = "2G"
# 6.12 was linked against a newer C library than Debian 12's. So its loader is named by a
# path relative to the current directory, of the same length as the one in the program's header.
LOADER = b"/lib64/ld-linux-x86-64.so.2\0"
OUR_LOADER = b"./ld.so\0"

INIT = f"""\
#!/bin/sh
set -e
trap 'echo "init: cannot go on"; poweroff -f' EXIT
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
modprobe -d "${{boot_modules%/lib/modules/*}}" overlay
mount -t tmpfs -o size=75%,mode=755 layer /mnt
mkdir /mnt/upper /mnt/work /mnt/system
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/system
cd /mnt/system
{boot.SYSTEM}\
mount -t hostfs -o "$boot_modules" modules "$modules"
mount -t hostfs -o "$boot_dir" boot run/boot
while read -r dir; do mount -t hostfs -o "$dir" writable "$PWD$dir"; done <run/boot/writable
for line in 0 1; do stty -F dev/ttyS$line raw; done
exec 7>dev/ttyS0 8>dev/ttyS1
mkdir -p run/old
pivot_root . run/old
exec chroot . /bin/sh -c '
    umount -l /run/old
    rmdir /run/old
    ip link set lo up
    exec /bin/sh /run/boot/main'
"""


@dataclass(frozen=True)
class Kernel:
    """The unpacked packages in the cache."""

    folder: Path

    @property
    def program(self) -> Path:
        """The kernel, to be started with its folder as the current one."""
        return self.folder / "linux"

    @property
    def modules(self) -> Path:
        """The folder of the modules of this kernel's version."""
        return next((self.folder / "lib" / "modules").iterdir())


def unpack(packages: Path, folder: Path) -> None:
    """Turn downloaded packages into what Kernel describes.

    Raises boot.BootError for packages of another layout.
    """
    contents = packages / "contents"
    for package in packages.glob("*.deb"):
        boot.run("dpkg-deb", "-x", package, contents)
    program = (contents / "usr/bin/linux.uml").read_bytes()
    modules = [*contents.glob("usr/lib/uml/modules/*")]
    if program.count(LOADER) != 1 or not modules:
        raise boot.BootError("the package user-mode-linux has another layout than expected")
    (folder / "lib" / "modules").mkdir(parents=True)
    loader = next(contents.rglob("x86_64-linux-gnu/ld-linux-x86-64.so.2"))
    (loader.parent / "libc.so.6").rename(folder / "libc.so.6")
    loader.rename(folder / "ld.so")
    modules[0].rename(folder / "lib" / "modules" / modules[0].name)
    boot.run("depmod", "-b", folder, modules[0].name)
    kernel = folder / "linux"
    kernel.write_bytes(program.replace(LOADER, OUR_LOADER.ljust(len(LOADER), b"\0")))
    kernel.chmod(0o755)


def provision(cache: Path, series: str) -> Kernel:
    """Return the kernel of a series in SUITES, from the cache or else from the mirror.

    Raises boot.BootError.
    """
    if os.geteuid() != 0:
        raise boot.BootError("has to be run by root")
    kernel, suite = Kernel(cache / f"user-mode-{series}"), SUITES[series]
    with boot.locked(cache):
        if not kernel.folder.exists():
            boot.install(boot.lacking("depmod"))
            boot.update_lists(cache / "apt")
            boot.say(f"fetching {PACKAGES[0]} of {suite}")
            with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as name:
                packages, folder = Path(name), Path(name, "kernel")
                wanted = [f"{package}/{suite}" for package in PACKAGES]
                boot.download(cache / "apt", packages, *wanted)
                unpack(packages, folder)
                folder.rename(kernel.folder)
    return kernel


def kernel_command(
    kernel: Kernel, folder: Path, ports: Sequence[int], parameters: Sequence[str]
) -> list[str]:
    """Return the command that starts the machine, without any network."""
    command = [
        "./linux",
        f"mem={MEMORY}",
        f"uml_dir={folder}/",
        "umid=machine",
        "quiet",
        "panic=-1",
    ]
    command += ["rootfstype=hostfs", "rootflags=/", "ro", f"init={folder}/init"]
    command += ["con=null", "con0=null,fd:1", "ssl=null"]
    command += [f"ssl{number}=null,fd:{port}" for number, port in enumerate(ports)]
    return [*command, f"boot_dir={folder}", f"boot_modules={kernel.modules}", *parameters]


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the processes of a machine, which are a session of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_machine(kernel: Kernel, folder: Path, limit: float, parameters: Sequence[str]) -> bool:
    """Run the machine until it powers off; return whether it did so within the time limit."""
    out, out_port = os.pipe()
    err, err_port = os.pipe()
    ports = (out_port, err_port)
    command = boot.dying_with_us("env", f"LD_LIBRARY_PATH={kernel.folder}")
    command += kernel_command(kernel, folder, ports, parameters)
    with open(folder / "console", "wb") as console:
        process = subprocess.Popen(
            command,
            cwd=kernel.folder,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            pass_fds=ports,
            start_new_session=True,
        )
    for port in ports:
        os.close(port)
    threads = [boot.forward(out, sys.stdout.buffer), boot.forward(err, sys.stderr.buffer)]
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        return False
    finally:
        end(process)
    for thread in threads:
        thread.join(10)
    return True


def start(
    series: str,
    command: Sequence[str],
    *,
    limit: float,
    writable: Sequence[Path],
    cache: Path,
    parameters: Sequence[str],
) -> int:
    """Run a command under a kernel; return its exit status. Without a command only provision.

    Raises boot.BootError.
    """
    kernel = provision(cache.resolve(), series)
    if not command:
        return 0
    with tempfile.TemporaryDirectory(prefix="boot-") as name:
        folder = Path(name).resolve()
        boot.write_guest_files(folder, command, writable)
        init = folder / "init"
        init.write_text(INIT)
        init.chmod(0o755)
        if run_machine(kernel, folder, limit, parameters):
            return boot.exit_status(folder)
    boot.say(f"time limit of {limit:g} s reached")
    return boot.TIME_LIMIT_REACHED


def main() -> int:
    """Return the exit status."""
    parser = boot.arguments(__doc__)
    parser.add_argument("--kernel", default="6.12", choices=SUITES, help="default: %(default)s")
    parser.add_argument(
        "--append", action="append", default=[], metavar="PARAMETER", help="for the kernel"
    )
    args = parser.parse_args()
    options = {
        "limit": args.timeout,
        "writable": args.writable,
        "cache": args.cache,
        "parameters": args.append,
    }
    return boot.guarded(lambda: start(args.kernel, args.command, **options))


if __name__ == "__main__":
    sys.exit(main())
