"""Make the image of the agent as an OCI archive, without a daemon and without a registry.

    python -m deploy.image.build [--base IMAGE] [--name NAME] [ARCHIVE]

buildah carries out deploy/image/Containerfile in namespaces of its own. Without --base the image
stands on Debian's C library alone, which deploy/prerequisites.sh has unpacked, and nothing is
fetched. With --base buildah fetches that image, from where this machine's /etc/containers tells.
The same files give the same archive, byte for byte: all of them get the time of SOURCE_DATE_EPOCH,
by default that of the last commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cni_common.spec.names import VERSION

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = Path(__file__).with_name("Containerfile")
DIST = ROOT / "dist"
TOOLS = ROOT / ".tools" / "image"
NAME = f"localhost/pycni:{VERSION}"  # as deploy/kubernetes/pycni.yaml has it
ARCHIVE = ROOT / "build" / "image" / "pycni.tar"
BYTES_MAX = 90_000_000  # of all layers, unpacked, on a base without anything else
# What Debian's packages bring and a program with a library of its own never opens.
UNUSED = (
    "usr/lib/*/gconv",
    "usr/lib/*/audit",
    "usr/share/lintian",
    "etc/update-motd.d",
    "*.deb",
    "complete",
)
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}  # of signatures: images here have none


class ImageError(Exception):
    """The image cannot be made; the message names the remedy."""


def main(arguments: Sequence[str]) -> int:
    """Make the archive and say what is in it."""
    parser = argparse.ArgumentParser(prog="python -m deploy.image.build")
    parser.add_argument(
        "--base", default="", metavar="IMAGE", help="instead of the C library alone"
    )
    parser.add_argument("--name", default=NAME, help="of the image (default: %(default)s)")
    parser.add_argument("archive", type=Path, nargs="?", default=ARCHIVE)
    options = parser.parse_args(arguments)
    try:
        digest, size = make(options.archive.absolute(), base=options.base, name=options.name)
    except (ImageError, OSError) as error:
        _say(f"error: {error}")
        return 1
    _say(f"{options.archive}: {options.name}, {size / 1e6:.1f} MB, {digest}")
    return 0


def make(archive: Path, *, base: str = "", name: str = NAME, dist: Path = DIST) -> tuple[str, int]:
    """Make the archive; return the image's digest, and its bytes once unpacked.

    `dist` has the directories bin and agent. Raises ImageError.
    """
    _require(dist / "bin" / "pycni", "make dist")
    _require(dist / "agent" / "pycni-agent", "make agent")
    with _workshop() as folder:
        buildah = Buildah(folder, fetches=bool(base))
        common = ["--timestamp", _epoch(), "--format", "oci"]
        if not base:
            base = buildah.base_of(_minimal(folder / "base"), common)
        buildah.run(
            *(
                "build",
                *common,
                "--layers=false",
                "--pull-never" if not buildah.fetches else "--pull",
            ),
            *("--build-arg", f"BASE={base}", "--build-arg", f"VERSION={VERSION}"),
            *("--file", str(CONTAINERFILE), "--tag", name, str(dist)),
        )
        layout = folder / "layout"
        buildah.run("push", "--quiet", name, f"oci:{layout}:{name}")
        size = _bytes_unpacked(layout)
        if size > BYTES_MAX and not buildah.fetches:
            raise ImageError(
                f"the image has {size} bytes, more than {BYTES_MAX}: what has come in?"
            )
        archive.parent.mkdir(parents=True, exist_ok=True)
        return _pack(layout, archive), size


class Buildah:
    """The program, with a store of images that ends with `folder`."""

    def __init__(self, folder: Path, *, fetches: bool) -> None:
        """`fetches`: whether it may reach the registries of this machine's /etc/containers."""
        self._folder, self.fetches = folder, fetches
        own = TOOLS / "buildah"
        program = shutil.which("buildah") or str(own / "usr" / "bin" / "buildah")
        _require(Path(program), "deploy/prerequisites.sh --image, or install buildah")
        if fetches and not Path("/etc/containers/policy.json").exists():
            raise ImageError(
                "--base needs /etc/containers, with registries and policy: install buildah"
            )
        policy = folder / "policy.json"
        policy.write_text(json.dumps(_POLICY))
        self._policy = [] if fetches else ["--signature-policy", str(policy)]
        store = [
            "--root",
            f"{folder}/store",
            "--runroot",
            f"{folder}/run",
            "--storage-driver",
            "vfs",
        ]
        # Its mounts are its own; so is its network, without any way out, if nothing is fetched.
        namespaces = ["--mount"] if fetches else ["--mount", "--net"]
        users = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._words = ["unshare", *users, *namespaces, "--", program, *store]
        self._environ = _environment(own, folder)

    def run(self, *words: str) -> str:
        """Run it, and return what it prints. Raises ImageError."""
        verb, *rest = words
        policy = self._policy if verb in ("from", "build", "push", "commit") else []
        command = [*self._words, verb, *policy, *rest]
        done = subprocess.run(
            command,
            env=self._environ,
            capture_output=True,
            text=True,
            check=False,
            cwd=self._folder,
        )
        if done.returncode:
            raise ImageError(f"'buildah {' '.join(words)}' failed:\n{done.stderr}{done.stdout}")
        return done.stdout.strip()

    def base_of(self, tree: Path, options: Sequence[str]) -> str:
        """Make an image of a directory; return its name."""
        container = self.run("from", "scratch")
        self.run("add", container, str(tree), "/")
        self.run("commit", *options, container, "localhost/base")
        return "localhost/base"


def _environment(own: Path, folder: Path) -> Mapping[str, str]:
    libraries = ":".join(str(path) for path in (own / "usr" / "lib").glob("*-linux-gnu*"))
    found = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "BUILDAH_ISOLATION": "chroot",
    }
    return found if shutil.which("buildah") else {**found, "LD_LIBRARY_PATH": libraries}


@contextmanager
def _workshop() -> Iterator[Path]:
    """Give an empty directory that is on this disk: layers would fill a tmpfs."""
    (ROOT / "build" / "image").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build" / "image") as folder:
        yield Path(folder)


def _require(file: Path, remedy: str) -> None:
    if not file.exists():
        raise ImageError(f"there is no '{file}': run {remedy}")


def _epoch() -> str:
    """Return the seconds since 1970 that all files of the image get."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given:
        return given
    words = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return (
        done.stdout.strip() if done.returncode == 0 else "0"
    )  # not a clone: still the same each time


def _minimal(tree: Path) -> Path:
    """Make the file system of a base: the C library, and the files that name users and services."""
    source = TOOLS / "base"
    _require(source / "complete", "deploy/prerequisites.sh --image")
    shutil.copytree(source, tree, symlinks=True)
    for pattern in UNUSED:
        for path in tree.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    return tree


def _bytes_unpacked(layout: Path) -> int:
    """Return the bytes of all files in the layers of an OCI layout."""
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((blobs / _hex(index["manifests"][0]["digest"])).read_text())
    total = 0
    for layer in manifest["layers"]:
        with tarfile.open(blobs / _hex(layer["digest"])) as archive:
            total += sum(member.size for member in archive if member.isreg())
    return total


def _hex(digest: str) -> str:
    return digest.partition(":")[2]


def _pack(layout: Path, archive: Path) -> str:
    """Write an OCI layout as an archive that depends on its content alone; return the digest."""
    new = archive.with_name(f".{archive.name}.new")
    with tarfile.open(new, "w") as packed:
        for path in sorted(layout.rglob("*")):
            member = packed.gettarinfo(path, str(path.relative_to(layout)))
            member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() else 0o644
            if member.isreg():
                with path.open("rb") as content:
                    packed.addfile(member, content)
            else:
                packed.addfile(member)
    os.replace(new, archive)
    index = json.loads((layout / "index.json").read_text())
    return str(index["manifests"][0]["digest"])


def sha256(path: Path) -> str:
    """Return the digest of a file, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _say(text: str) -> None:
    print(f"image: {text}", flush=True)  # noqa: T201 - a program of its own


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
