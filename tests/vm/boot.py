#!/usr/bin/env python3
"""Run a command as root under a Debian kernel, in a virtual machine with this machine's files."""

# ruff: noqa: T201, TID251  # a program of its own, which may read and end its process

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import lzma
import os
import platform
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CACHE = Path(__file__).resolve().parents[2] / ".tools" / "vm"
KERNEL_SERIES = re.compile(r"\d+\.\d+(-cloud)?")
# Where kernels are looked for: the newest package of a series wins, wherever it is.
SUITES = ("bookworm", "bookworm-backports", "trixie")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "depmod": "kmod"}
# The server of this machine's files: Debian 12's, part of qemu's packages, and its successor.
VIRTIOFSD = {
    "/usr/lib/qemu/virtiofsd": "-o source=/ -o cache=always -o sandbox=chroot",
    "/usr/libexec/virtiofsd": "--shared-dir=/ --cache=always --sandbox=chroot"
    " --no-announce-submounts",
}
BOOT_MODULES = ("virtio_pci", "virtio_console", "virtiofs", "overlay")
APPLETS = ("insmod", "ip", "ln", "mkdir", "mknod", "mount", "poweroff", "sh", "switch_root",
           "umount", "uname")  # fmt: skip
MEMORY = "2G"
CPUS = 1
# cx16: the emulation of cmpxchg16b in qemu 7.2 spoils the flags, which now and then crashes a
# kernel that uses it (for every allocation). la57: five levels of page tables only take time.
CPU = "max,cx16=off,la57=off"
STEP_LIMIT = 600  # seconds for one step of the provisioning, a download or an installation
LISTS_KEPT = 24 * 3600  # seconds after which the package lists count as old
TIME_LIMIT_REACHED = 124
BOOT_FAILED = 125

KERNEL_OPTIONS = (
    "console=ttyS0 quiet panic=-1 "
    # Emulation is slow: leave out what costs time and protects nothing here.
    "mitigations=off nokaslr no_timer_check init_on_alloc=0 audit=0 lsm=capability "
    "cryptomgr.notests random.trust_cpu=on "
    # Deleting links and namespaces waits for RCU, for long on an emulated processor.
    "rcupdate.rcu_expedited=1"
)

APT_CONF = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "2";
Dir::Cache "{apt}/cache";
Dir::State "{apt}/state";
Dir::State::status "/dev/null";
Dir::Etc::sourcelist "{apt}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""

# The kernel hands boot_dir and boot_modules of its command line over in the environment.
# In a new root directory, which is the current one. The kernel hands boot_dir and boot_modules of
# its command line over in the environment.
SYSTEM = """\
mount -t proc proc proc
mount -t sysfs sys sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t devtmpfs dev dev
mkdir -p dev/pts dev/shm dev/net
mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs -o mode=755 run run
ln -s /proc/self/fd dev/fd
for link in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${link%:*}" "dev/${link#*:}"; done
# The module behind this node is loaded when it is opened, so it has to be there before.
[ -e dev/net/tun ] || mknod -m 666 dev/net/tun c 10 200
modules=lib/modules/$(uname -r)
mkdir -p run/boot run/lock "$modules"
"""

INIT = f"""\
#!/bin/sh
set -e
trap 'echo "init: cannot go on"; poweroff -f' EXIT
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
mount -t virtiofs host /host
mount -t tmpfs -o size=75%,mode=755 layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /system
cd /system
{SYSTEM}\
mount --bind "/host$boot_modules" "$modules"
mount --bind "/host$boot_dir" run/boot
while read -r dir; do mount --bind "/host$dir" "/system$dir"; done <run/boot/writable
ip link set lo up
set -- /dev/vport*p1
exec 7>"${{1%1}}1" 8>"${{1%1}}2"
cd /
umount -l /host /proc /dev
exec switch_root /system /bin/sh /run/boot/main
"""

# Output goes through pipes, as a port cannot be opened a second time (by way of /dev/stdout).
MAIN = """\
mount --make-rshared /  # as on a machine started by systemd
modprobe br_netfilter  # as on a cluster's node; nothing would load it by itself
mkfifo /run/out /run/err
cat /run/out >&7 & out=$!
cat /run/err >&8 & err=$!
setsid --wait sh /run/boot/command </dev/null >/run/out 2>/run/err 7>&- 8>&-
status=$?
(sleep 2; kill $out $err) &  # a process left behind may hold the pipes open
wait $out $err
echo $status >/run/boot/status
sync
echo o >/proc/sysrq-trigger
sleep 10  # and if that was no power-off, the end of process 1 is
"""


class BootError(Exception):
    """The machine cannot be provisioned or started."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package in the cache."""

    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def busybox(self) -> Path:
        return self.folder / "busybox"

    @property
    def modules(self) -> Path:
        return next((self.folder / "lib" / "modules").iterdir())

    @property
    def initramfs(self) -> Path:
        """Return the path, which changes with what is in it."""
        content = INIT + " ".join(BOOT_MODULES + APPLETS)
        return self.folder / f"initramfs-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


# ---- provisioning ---------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"boot.py: {text}", file=sys.stderr, flush=True)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def run(*command: str | Path, cwd: Path | None = None, check: bool = True) -> str:
    """Run a step of the provisioning and return its stdout."""
    words = [str(word) for word in command]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STEP_LIMIT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BootError(str(error)) from error
    if check and done.returncode:
        raise BootError(f"{shlex.join(words)} failed: {last_line(done.stderr)}")
    return done.stdout


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Let only one process at a time change the cache and the installed packages."""
    cache.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + STEP_LIMIT
    with open(cache / "lock", "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BootError(f"{cache}/lock is held by another process") from None
                time.sleep(0.2)
        yield


def release_of_debian() -> str:
    """Return the code name of this machine's Debian."""
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        system = {}
    if system.get("ID") != "debian" or platform.machine() != "x86_64" or not KEYRING.exists():
        raise BootError(
            "not a Debian machine (amd64): it takes Debian 12 with apt-get, debian-archive-keyring"
            f" and the packages {', '.join(sorted(TOOLS.values()))}"
        )
    return system.get("VERSION_CODENAME", "")


def install_tools() -> None:
    """Install what is missing of the programs that run on the host."""
    packages = lacking(*TOOLS)
    if not any(map(os.path.exists, VIRTIOFSD)):
        bookworm = release_of_debian() == "bookworm"
        packages.append("qemu-system-common" if bookworm else "virtiofsd")
    install(packages)


def lacking(*tools: str) -> list[str]:
    """Return the packages of those of TOOLS that the host lacks."""
    return [TOOLS[tool] for tool in tools if not shutil.which(tool)]


def install(packages: Sequence[str]) -> None:
    """Install packages of Debian on the host. Raises BootError."""
    if not packages:
        return
    release_of_debian()
    say(f"installing {' '.join(packages)}")
    command = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", "install", "-y"]
    command += ["--no-install-recommends", *packages]
    try:
        run(*command)
    except BootError:  # most likely the lists are absent or old
        run("apt-get", "-qq", "update", check=False)
        run(*command)


def mirror() -> str:
    """Return the address of the Debian mirror that this machine uses."""
    query = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    query += ["Origin: Debian", f"Codename: {release_of_debian()}"]
    found = run(*query).split()
    if not found:  # only sources whose lists are there are known
        run("apt-get", "-qq", "update", check=False)
        found = run(*query).split()
    if not found:
        raise BootError("apt-get on this machine knows no mirror of Debian")
    return found[0]


def update_lists(apt: Path) -> None:
    """Fetch the package lists of all suites with an apt configuration of our own."""
    fresh = apt / "fresh"
    if fresh.exists() and time.time() - fresh.stat().st_mtime < LISTS_KEPT:
        return
    address = mirror()
    say("fetching package lists")
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    source = f"deb [arch=amd64 target=Packages signed-by={KEYRING}] {address}"
    (apt / "sources.list").write_text("".join(f"{source} {suite} main\n" for suite in SUITES))
    (apt / "apt.conf").write_text(APT_CONF.format(apt=apt))
    # A suite that has left the mirror must not stop the others.
    run("apt-get", "-qq", "-c", apt / "apt.conf", "update", check=False)
    fresh.touch()


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def download(apt: Path, folder: Path, *packages: str) -> None:
    """Fetch packages into a folder; the lists are there."""
    run("apt-get", "-qq", "-c", apt / "apt.conf", "download", *packages, cwd=folder)


def newest_package(apt: Path, series: str) -> str:
    """Return the newest kernel package of a series such as 6.12-cloud."""
    version, _, flavour = series.partition("-")
    name = rf"^linux-image-{re.escape(version)}\.[0-9][^-]*(-[0-9]+)?"
    name += f"-{flavour}-amd64$" if flavour else "-amd64$"
    found = run("apt-cache", "-c", apt / "apt.conf", "search", "--names-only", name)
    packages = [line.split()[0] for line in found.splitlines()]
    if not packages:
        (apt / "fresh").unlink()
        raise BootError(f"no kernel {series} on the mirror, in {', '.join(SUITES)}")
    return max(packages, key=numbers)


def unpack(packages: Path, folder: Path) -> None:
    """Turn downloaded packages into what Kernel describes."""
    contents = packages / "contents"
    for package in packages.glob("*.deb"):
        run("dpkg-deb", "-x", package, contents)
    images = [*contents.glob("boot/vmlinuz-*")]
    modules = [*contents.glob("lib/modules/*"), *contents.glob("usr/lib/modules/*")]
    busybox = [*contents.glob("bin/busybox"), *contents.glob("usr/bin/busybox")]
    if not (images and modules and busybox):
        raise BootError("the kernel's package has another layout than expected")
    (folder / "lib" / "modules").mkdir(parents=True)
    images[0].rename(folder / "vmlinuz")
    busybox[0].rename(folder / "busybox")
    modules[0].rename(folder / "lib" / "modules" / modules[0].name)
    run("depmod", "-b", folder, modules[0].name)


def fetch_kernel(cache: Path, series: str) -> Kernel:
    """Return the kernel of a series, from the cache or else from the mirror."""
    kernel = Kernel(cache / series)
    if kernel.folder.exists():
        return kernel
    apt = cache / "apt"
    update_lists(apt)
    package = newest_package(apt, series)
    say(f"fetching {package}")
    with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as name:
        packages, folder = Path(name), Path(name, "kernel")
        download(apt, packages, package, "busybox-static")
        unpack(packages, folder)
        folder.rename(kernel.folder)
    return kernel


# ---- initramfs ------------------------------------------------------------------------------


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def archive_member(name: str, mode: int, data: bytes = b"") -> bytes:
    """Return one member of a cpio archive in the format that the kernel reads."""
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    header = "070701" + "".join(f"{field:08X}" for field in fields) + name + "\0"
    return padded(header.encode()) + padded(data)


def boot_modules(kernel: Kernel) -> list[Path]:
    """Return the modules that reach the host's files, in the order of loading."""
    files: list[str] = []
    for module in BOOT_MODULES:
        options = ["-C", "/dev/null", "-d", str(kernel.folder), "-S", kernel.modules.name]
        needed = run("modprobe", *options, "--show-depends", module).splitlines()
        files += [line.split()[1] for line in needed if line.startswith("insmod ")]
    return [Path(file) for file in dict.fromkeys(files)]


def module_content(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def build_initramfs(kernel: Kernel) -> None:
    if kernel.initramfs.exists():
        return
    members = [
        archive_member(folder, stat.S_IFDIR | 0o755)
        for folder in ("bin", "modules", "proc", "dev", "host", "layer", "system")
    ]
    program = stat.S_IFREG | 0o755
    members.append(archive_member("init", program, INIT.encode()))
    members.append(archive_member("bin/busybox", program, kernel.busybox.read_bytes()))
    for applet in APPLETS:
        members.append(archive_member(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox"))
    for number, path in enumerate(boot_modules(kernel)):
        name = f"modules/{number:02}-{path.name.removesuffix('.xz')}"
        members.append(archive_member(name, stat.S_IFREG | 0o644, module_content(path)))
    members.append(archive_member("TRAILER!!!", 0))
    new = kernel.initramfs.with_name("initramfs.new")
    new.write_bytes(b"".join(members))
    new.rename(kernel.initramfs)


def provision(series: str, cache: Path) -> Kernel:
    """Make sure that everything a machine with this kernel takes is there."""
    if not KERNEL_SERIES.fullmatch(series):
        raise BootError(f"{series} is no kernel series such as 6.12-cloud")
    if os.geteuid() != 0:
        raise BootError("has to be run by root")
    with locked(cache):
        install_tools()
        kernel = fetch_kernel(cache, series)
        build_initramfs(kernel)
    return kernel


# ---- one run --------------------------------------------------------------------------------


def dying_with_us(*command: str | Path) -> list[str]:
    """Extend a command so that it is killed when this process dies."""
    return ["setpriv", "--pdeathsig", "KILL", *map(str, command)]


def guest_command(command: Sequence[str]) -> str:
    """Return a shell script that runs the command in this process's environment and folder."""
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    return shlex.join(["exec", "env", "-i", "-C", os.getcwd(), *environment, *command]) + "\n"


def write_guest_files(folder: Path, command: Sequence[str], writable: Sequence[Path]) -> None:
    (folder / "main").write_text(MAIN)
    (folder / "command").write_bytes(os.fsencode(guest_command(command)))
    (folder / "writable").write_text("".join(f"{path.resolve()}\n" for path in writable))


def qemu_command(kernel: Kernel, folder: Path, ports: Sequence[int]) -> list[str]:
    """Return the command that starts the machine: emulated, and without any network.

    Its network card leads nowhere, and has no driver until `modprobe virtio_net`.
    """
    options = f'{KERNEL_OPTIONS} boot_dir="{folder}" boot_modules="{kernel.modules}"'
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"]
    command += ["-machine", "q35,accel=tcg,hpet=off,memory-backend=ram"]
    command += ["-object", f"memory-backend-memfd,id=ram,size={MEMORY},share=on", "-m", MEMORY]
    command += ["-cpu", CPU, "-smp", str(CPUS), "-display", "none", "-nic", "none"]
    command += ["-kernel", str(kernel.image), "-initrd", str(kernel.initramfs)]
    command += ["-append", options, "-serial", f"file:{folder}/console"]
    command += ["-chardev", f"socket,id=host,path={folder}/socket"]
    command += ["-device", "vhost-user-fs-pci,chardev=host,tag=host,queue-size=1024"]
    command += ["-device", "virtio-serial-pci"]
    command += ["-netdev", "hubport,id=net,hubid=0", "-device", "virtio-net-pci,netdev=net"]
    for number, port in enumerate(ports, start=1):
        command += ["-chardev", f"file,id=port{number},path=/dev/fd/{port}"]
        command += ["-device", f"virtserialport,nr={number},chardev=port{number}"]
    return command


@contextlib.contextmanager
def stopped_at_end(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def sharing_files(folder: Path) -> Iterator[None]:
    """Serve this machine's root file system to the guest."""
    server, options = next(item for item in VIRTIOFSD.items() if os.path.exists(item[0]))
    command = dying_with_us(server, f"--socket-path={folder}/socket", *options.split())
    with open(folder / "virtiofsd.log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    with stopped_at_end(process):
        deadline = time.monotonic() + 10
        while not (folder / "socket").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                message = last_line((folder / "virtiofsd.log").read_text(errors="replace"))
                raise BootError(f"virtiofsd did not start: {message}")
            time.sleep(0.02)
        yield


def forward(pipe: int, target: BinaryIO) -> threading.Thread:
    """Copy what comes through a pipe, at once, until its other end is closed."""

    def copy() -> None:
        with open(pipe, "rb", buffering=0) as source:
            while chunk := source.read(65536):
                target.write(chunk)
                target.flush()

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def run_machine(kernel: Kernel, folder: Path, limit: float) -> bool:
    """Run the machine until it powers off; return whether it did so within the time limit."""
    out, out_port = os.pipe()
    err, err_port = os.pipe()
    ports = (out_port, err_port)
    command = dying_with_us(*qemu_command(kernel, folder, ports))
    with open(folder / "qemu.log", "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=ports
        )
    for port in ports:
        os.close(port)
    threads = [forward(out, sys.stdout.buffer), forward(err, sys.stderr.buffer)]
    with stopped_at_end(process):
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return False
    for thread in threads:
        thread.join(10)
    return True


def exit_status(folder: Path) -> int:
    """Return the command's exit status, or say how the machine died.

    Raises BootError if the machine died before the command ended.
    """
    status = folder / "status"
    if status.exists() and status.read_text().strip():
        return int(status.read_text())
    for name in ("console", "qemu.log", "virtiofsd.log"):
        if (folder / name).exists():
            lines = (folder / name).read_text(errors="replace").splitlines()
            print(*lines[-30:], sep="\n", file=sys.stderr)
    raise BootError("the machine died before the command ended; see its last messages above")


def boot(
    series: str,
    command: Sequence[str],
    *,
    limit: float,
    writable: Sequence[Path] = (),
    cache: Path = CACHE,
) -> int:
    """Run a command under a kernel; return its exit status. Without a command only provision."""
    for path in writable:
        if not path.is_dir():
            raise BootError(f"{path} is no folder")
    kernel = provision(series, cache.resolve())
    if not command:
        return 0
    with tempfile.TemporaryDirectory(prefix="boot-") as name:
        folder = Path(name).resolve()
        write_guest_files(folder, command, writable)
        with sharing_files(folder):
            in_time = run_machine(kernel, folder, limit)
        if in_time:
            return exit_status(folder)
    say(f"time limit of {limit:g} s reached")
    return TIME_LIMIT_REACHED


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of what all such programs are told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for start and command")
    parser.add_argument("--writable", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--cache", type=Path, default=CACHE, help="default: %(default)s")
    parser.add_argument("command", nargs="*", help="without it only provision")
    return parser


def guarded(work: Callable[[], int]) -> int:
    """Return the exit status of a run of the machine, after a sentence if it could not be."""
    os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return work()
    except BootError as error:
        say(str(error))
        return BOOT_FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--kernel", default="6.12-cloud", help="series (default: %(default)s)")
    args = parser.parse_args()
    options = {"limit": args.timeout, "writable": args.writable, "cache": args.cache}
    return guarded(lambda: boot(args.kernel, args.command, **options))


if __name__ == "__main__":
    sys.exit(main())
