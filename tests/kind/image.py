"""The image of kind's nodes, made without a registry: Debian, Kubernetes' programs, images.

    python -m tests.kind.image       # makes it, unless `.tools/kind/node-<digest>.tar` is there

kind expects in it: process 1 that prepares a container for systemd, containerd with the images of
the control plane, kubelet and kubeadm, and /kind/version. All images of the control plane are one
image under all the names that kubeadm asks for, since all its programs are one executable.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kind import archive
from tests.machine import TOOLS
from tests.runtimes import image as pod_image

HERE = Path(__file__).resolve().parent
STORE = TOOLS / "kind"
PROGRAMS = TOOLS / "kubernetes" / "current"
NAME = "localhost/node:1"
SECONDS = 300.0  # for each step; only a failure takes so long
_CONFIG = {
    "Entrypoint": ["/usr/local/bin/entrypoint", "/sbin/init"],
    "Env": [
        "container=docker",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ],
    "StopSignal": "SIGRTMIN+3",  # systemd's for an orderly end
}
# What kube-proxy, in its image, runs; the others need nothing but themselves.
_OF_PROXY = ("usr/sbin/xtables-nft-multi", "usr/sbin/nft", "usr/sbin/conntrack")
_LINKS_OF_PROXY = tuple(
    f"ip{v6}tables{verb}" for v6 in ("", "6") for verb in ("", "-save", "-restore")
)
_UNITS = """\
cd /etc/systemd/system
rm -f ./*.wants/* /lib/systemd/system/{multi-user,sockets,basic}.target.wants/*
systemctl enable --quiet containerd.service kubelet.service
# Of the machine, or of none here.
systemctl mask --quiet systemd-binfmt.service proc-sys-fs-binfmt_misc.automount
systemctl mask --quiet getty.target console-getty.service
update-alternatives --quiet --set iptables /usr/sbin/iptables-nft
update-alternatives --quiet --set ip6tables /usr/sbin/ip6tables-nft
rm -f /etc/cni/net.d/* /opt/cni/bin/* # a list would have nodes Ready on another network
mkdir -p /kind/manifests /etc/kubernetes/manifests /lib/modules /opt/cni/bin /etc/cni/net.d
"""
# The node's containerd unpacks images into its own store.
_IMPORT = """\
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
containerd --log-level error &
daemon=$!
for turn in $(seq 300); do
    ! ctr version >/dev/null 2>&1 || break
    sleep 0.1
done
for archive in /images/*.tar; do ctr --namespace k8s.io images import "$archive" >/dev/null; done
kill $daemon
wait $daemon || true
"""


def made() -> Path:
    """Return the image's archive, made now unless it is there."""
    STORE.mkdir(parents=True, exist_ok=True)
    with (STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = STORE / f"node-{_digest()}.tar"
        if not path.exists():
            _say("making the image of kind's nodes")
            for old in STORE.glob("node-*.tar"):
                old.unlink()
            with _workshop() as folder:
                _make(folder)
                (folder / "node.tar").rename(path)
    return path


def base() -> Path | None:
    """Return what base.sh has made, None where it has not."""
    return next(iter(STORE.glob("base-*.tar")), None)


def version() -> str:
    """Return the version of Kubernetes, such as v1.37.2."""
    return _output(PROGRAMS / "kubeadm", "version", "-o", "short").strip()


def _digest() -> str:
    """Return the digest of what the image is made of."""
    found = hashlib.sha256(f"{base()} {PROGRAMS.resolve().name}".encode())
    files = [path for path in (HERE / "node").rglob("*") if path.is_file()]
    for path in (*sorted(files), HERE / "archive.py", Path(__file__), Path(pod_image.__file__)):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


@contextmanager
def _workshop() -> Iterator[Path]:
    """Give a directory on the store's disk: containerd's overlays stand on no other overlay."""
    with tempfile.TemporaryDirectory(dir=STORE) as folder:
        yield Path(folder)


def _make(folder: Path) -> None:
    root = folder / "root"
    root.mkdir()
    found = base()
    assert found, "there is no base-*.tar: run deploy/prerequisites.sh --kind"
    _run("tar", "-xf", found, "-C", root)
    shutil.copytree(HERE / "node", root, dirs_exist_ok=True, symlinks=True)
    shutil.copy(PROGRAMS / "kubernetes", root / "usr/local/bin")
    for name in ("kubeadm", "kubectl", "kubelet"):
        (root / "usr/bin" / name).symlink_to("../local/bin/kubernetes")
    _inside(root, _UNITS)
    (root / "kind/version").write_text(version() + "\n")
    (root / "images").mkdir()
    _make_control_plane(root, folder)
    pod_image.write(root / "images/pod.tar")
    _inside(root, _IMPORT)
    shutil.rmtree(root / "images")
    for waste in ("var/cache", "var/log", "var/lib/apt/lists"):
        for path in (root / waste).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    layer = _pack(root, folder / "root.tar", ["."])
    archive.write(folder / "node.tar", layer, [NAME], _CONFIG)


def _make_control_plane(root: Path, folder: Path) -> None:
    """Make the one image of etcd, CoreDNS and all programs of Kubernetes."""
    tree = folder / "image"
    for name in ("etc", "proc", "run", "sys", "tmp", "usr/local/bin", "usr/sbin", "bin"):
        (tree / name).mkdir(parents=True)
    shutil.copy(PROGRAMS / "kubernetes", tree / "usr/local/bin")
    for link in PROGRAMS.iterdir():
        if link.is_symlink():
            (tree / "usr/local/bin" / link.name).symlink_to("kubernetes")
    (tree / "coredns").symlink_to("usr/local/bin/kubernetes")
    for name in _LINKS_OF_PROXY:
        (tree / "usr/sbin" / name).symlink_to("xtables-nft-multi")
    plugins = [str(path.relative_to(root)) for path in (root / "usr/lib").glob("*/xtables/*.so")]
    for name in {*_OF_PROXY, *plugins, *_libraries(root, [*_OF_PROXY, *plugins])}:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(
            (root / name).resolve() if not (root / name).is_symlink() else root / name, tree / name
        )
    words = ("config", "images", "list", "--kubernetes-version", version())
    names = _output(PROGRAMS / "kubeadm", *words).split()
    layer = _pack(tree, folder / "image.tar", sorted(path.name for path in tree.iterdir()))
    config = {"Entrypoint": ["/coredns"], "Env": [_CONFIG["Env"][1]]}
    archive.write(root / "images/control-plane.tar", layer, names, config)


def _libraries(root: Path, names: list[str]) -> set[str]:
    """Return the files, below `root`, of the libraries that programs in there are loaded with."""
    words = ["chroot", str(root), "ldd", *(f"/{name}" for name in names)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # 1 for a static one
    return set(re.findall(r"\s/(\S+) \(0x", done.stdout))


def _inside(root: Path, script: str) -> None:
    """Run a script in the image's file system, in namespaces of its own."""
    namespaces = ("--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child")
    _run("unshare", *namespaces, "chroot", root, "bash", "-euc", script)


def _pack(tree: Path, path: Path, names: list[str]) -> Path:
    options = ("--numeric-owner", "--sort=name", "--xattrs")
    _run("tar", *options, "-cf", path, "-C", tree, *names)
    return path


def _output(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def _run(*words: str | Path) -> None:
    subprocess.run(words, timeout=SECONDS, check=True)


def _say(text: str) -> None:
    print(f"kind: {text}", file=sys.stderr, flush=True)  # noqa: T201 - a program, too


if __name__ == "__main__":
    _say(str(made()))
