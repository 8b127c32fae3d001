"""The images that Kubernetes' own tests ask for, without any registry.

Debian's programs stand in for Alpine's. The image agnhost has the program of that name, which is a
server and a client of many kinds, and what tests call by a shell. All others are small.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.kubernetes.world import PROGRAMS as KUBERNETES
from tests.machine import TOOLS, Json
from tests.runtimes import image

PROGRAMS = TOOLS / "kubernetes" / "upstream"  # by build.sh
DEBIAN = TOOLS / "kubernetes" / "agnhost"  # by deploy/prerequisites.sh --upstream
REGISTRY = "localhost/upstream"  # where the tests are told to find their images
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SPARED = ("usr/share", "usr/lib/python3", "packages")  # nothing there is called
_USERS = """\
root:x:0:0:root:/root:/bin/sh
user-defined-in-image:x:1000:1000::/home/user:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUPS = """\
root:x:0:
user-defined-in-image:x:1000:
group-defined-in-image:x:50000:user-defined-in-image
nogroup:x:65534:
"""
# What packages write when they are installed, and tests look for.
_FILES = {
    "etc/passwd": _USERS,
    "etc/group": _GROUPS,
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_LINKS = {"usr/bin/nc": "nc.openbsd", "usr/bin/awk": "mawk", "agnhost-2": "agnhost"}


@dataclass(frozen=True)
class Image:
    """An image: which of the layers it has, and how a container of it begins."""

    layer: str
    config: Json = field(default_factory=dict)


_AGNHOST = {"Env": [_PATH], "Entrypoint": ["/agnhost"], "WorkingDir": "/"}
# By the names of the tests, whatever their version.
IMAGES = {
    "agnhost": Image("agnhost", {**_AGNHOST, "Cmd": ["pause"]}),
    "glibc-dns-testing": Image("agnhost", {"Env": [_PATH], "Cmd": ["/bin/sh"]}),
    "regression-issue-74839": Image(
        "agnhost", {"Env": [_PATH], "Entrypoint": ["/regression-issue-74839"]}
    ),
    "nginx": Image("agnhost", {**_AGNHOST, "Cmd": ["test-webserver"]}),  # any server on port 80
    "busybox": Image("busybox", {"Env": ["PATH=/bin"], "Cmd": ["sh"]}),
    "pause": Image("busybox", {"Env": ["PATH=/bin"], "Cmd": ["/pause"]}),
    "nonroot": Image("busybox", {"Env": ["PATH=/bin"], "Cmd": ["id"], "User": "1234"}),
}


def missing() -> str:
    """Return why the tests cannot run here, "" where they can."""
    if not ((PROGRAMS / "critest").exists() and (DEBIAN / "packages").exists()):
        return f"{PROGRAMS} or {DEBIAN} is not there: run deploy/prerequisites.sh --upstream"
    return ""


def _spare(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.startswith(_SPARED) else member


def _write_layer(path: Path) -> None:
    """Write the files of the image agnhost."""
    with tarfile.open(path, "w") as archive:
        archive.add(DEBIAN, arcname="", filter=_spare)
        for name in ("agnhost", "regression-issue-74839", "localhost.crt", "localhost.key"):
            archive.add(PROGRAMS / name, arcname=name)
        archive.add((KUBERNETES / "coredns").resolve(), arcname="coredns")
        for name, text in _FILES.items():
            member = tarfile.TarInfo(name)
            member.mode, member.size = 0o644, len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
        for name, target in _LINKS.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
        for name in ("tmp", "uploads"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o1777
            archive.addfile(member)


def write(path: Path, names: Iterable[str]) -> None:
    """Write those of the named images that are known here, as `docker save` does."""
    folder = path.with_suffix(".layers")
    folder.mkdir()
    _write_layer(folder / "agnhost")
    (folder / "busybox").write_bytes(image.layer())
    digests = {}
    for layer in folder.iterdir():
        with layer.open("rb") as file:
            digests[layer.name] = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = []
    with tarfile.open(path, "w") as archive:
        for layer in folder.iterdir():
            archive.add(layer, f"{layer.name}.tar")
        for number, name in enumerate(sorted(names)):
            short = name.rpartition("/")[2].partition(":")[0]
            if short not in IMAGES:
                continue
            made, config = IMAGES[short], f"{number}.json"
            _add(archive, config, image.described(made.config, digests[made.layer]))
            tags = {"Config": config, "RepoTags": [name], "Layers": [f"{made.layer}.tar"]}
            manifest.append(tags)
        _add(archive, "manifest.json", manifest)


def _add(archive: tarfile.TarFile, name: str, content: object) -> None:
    data = json.dumps(content).encode()
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
