"""Build the programs of a Kubernetes cluster, once for each state of their sources.

    tests/kubernetes/build/programs.py GO     # the program `go` to build with

The sources are the modules that go.mod pins and go.sum checks. The programs land in
`.tools/kubernetes/<digest>/`; the link `.tools/kubernetes/current` leads to the newest. `<digest>`
is of go.mod, go.sum, main.go, this file and Go's version: what is there already is not built again.
A cold build takes 1,750 s of processor time, 3.5 GB of memory, 2.3 GB for modules and 4.6 GB for
Go's cache of packages, from which Go itself removes what nobody has used for five days.

Uses the standard library alone, as it runs before .venv is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
STORE = HERE.parents[2] / ".tools" / "kubernetes"
CURRENT = STORE / "current"
NAMES = (
    *("coredns", "etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy"),
    *("kube-scheduler", "kubeadm", "kubectl", "kubelet"),
)
PROGRESS_SECONDS = 30.0  # between two lines about a build that goes on
JOBS = 4  # packages compiled at a time; the largest take a gigabyte each
# The variables that a released Kubernetes has set; kubeadm and kubelet refuse an empty version.
_STAMPED = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


def say(text: str) -> None:
    """Print a line for the person who waits."""
    print(f"kubernetes: {text}", flush=True)  # noqa: T201 - a program of its own


def go_output(go: str, *words: str) -> str:
    """Return what a command of Go prints. Raises CalledProcessError."""
    return subprocess.run(
        [go, *words], cwd=HERE, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


def digest(go_version: str) -> str:
    """Return the name of the folder for these sources, built with this version of Go."""
    found = hashlib.sha256(go_version.encode())
    for name in ("go.mod", "go.sum", "main.go", Path(__file__).name):
        found.update((HERE / name).read_bytes())
    return found.hexdigest()[:16]


def kubernetes_version() -> str:
    """Return the version that go.mod names, such as v1.37.2."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", (HERE / "go.mod").read_text(), re.MULTILINE)
    assert found, "go.mod names no version of k8s.io/kubernetes"
    return found[1]


def linker_flags(version: str) -> str:
    """Return the linker's options: no symbols, and the version where programs look for theirs."""
    major, minor, _ = version.removeprefix("v").split(".", 2)
    values = {
        "gitVersion": version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",  # the same sources give the same program
    }
    stamps = [
        f"-X {package}.{name}={value}" for package in _STAMPED for name, value in values.items()
    ]
    return " ".join(("-s", "-w", *stamps))


def compile_with_progress(command: list[str], packages: int) -> None:
    """Run `go build -v`, which names each package, and tell from time to time how many are done.

    Raises SystemExit with the last of its output if the build fails.
    """
    environ = {**os.environ, "CGO_ENABLED": "0"}  # noqa: TID251 - a tool hands its environment on
    build = subprocess.Popen(command, cwd=HERE, env=environ, stderr=subprocess.PIPE, text=True)
    assert build.stderr is not None
    begun = told = time.monotonic()
    lines: list[str] = []
    for line in build.stderr:
        lines.append(line)
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            say(f"{told - begun:5.0f} s, {len(lines)} of at most {packages} packages")
    if build.wait():
        raise SystemExit("kubernetes: go build failed:\n" + "".join(lines[-40:]))
    say(f"built in {time.monotonic() - begun:.0f} s")


def build(go: str, folder: Path) -> None:
    """Build the executable, and make a link for each of its names."""
    say("fetching modules")
    packages = len(go_output(go, "list", "-deps", ".").splitlines())
    version = kubernetes_version()
    say(f"building {version}: a quarter of an hour on two free cores, once")
    common = ["build", "-v", "-p", str(JOBS), "-trimpath", "-buildvcs=false"]
    flags = ["-ldflags", linker_flags(version), "-o", str(folder / "kubernetes"), "."]
    compile_with_progress([go, *common, *flags], packages)
    for name in NAMES:
        link(folder / name, "kubernetes")


def link(path: Path, target: str) -> None:
    """Make a symbolic link, in place of another one."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.rename(path)


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock on the store: two builds at once would take twice the memory."""
    STORE.mkdir(parents=True, exist_ok=True)
    with (STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(go: str) -> None:
    """Build unless it is there, and lead `current` to it."""
    with alone():
        folder = STORE / digest(go_output(go, "env", "GOVERSION"))
        if not (folder / "complete").exists():
            folder.mkdir(exist_ok=True)
            build(go, folder)
            (folder / "complete").touch()
        link(CURRENT, folder.name)


if __name__ == "__main__":
    main(sys.argv[1])
