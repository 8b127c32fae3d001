"""The one image of these tests: busybox and a few files, without any registry."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.machine import TOOLS, Json

NAME = "localhost/test:1"
WAITING = {NAME: ("/pause",)}
BUSYBOX = TOOLS / "runtimes" / "usr" / "bin" / "busybox"
_WHO = """\
#!/bin/sh
address=${REMOTE_ADDR#[}
address=${address%]}
printf 'Content-Type: text/plain\\r\\n\\r\\n%s\\n' "${address#::ffff:}"
"""
FILES = {
    "etc/passwd": ("root:x:0:0:root:/root:/bin/sh\n", 0o644),
    "etc/group": ("root:x:0:\n", 0o644),
    "pause": ("#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile :; do sleep 3600 & wait $!; done\n", 0o755),
    "www/hello": ("hello\n", 0o644),
    "www/index.html": ("hello\n", 0o644),
    "www/cgi-bin/who": (_WHO, 0o755),  # says from where the client seems to come
}
DIRECTORIES = (
    "bin",
    "dev",
    "etc",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "var",
    "www",
    "www/cgi-bin",
)
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.size = mode, len(content)
    archive.addfile(member, io.BytesIO(content))


def _add_special(archive: tarfile.TarFile, name: str, kind: bytes, target: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.type, member.linkname = 0o755, kind, target
    archive.addfile(member)


def layer() -> bytes:
    """Return the image's files as a tar archive."""
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in DIRECTORIES:
            _add_special(archive, name, tarfile.DIRTYPE)
        _add(archive, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        for applet in set(listed.stdout.split()) - {"busybox"}:
            _add_special(archive, f"bin/{applet}", tarfile.SYMTYPE, "busybox")
        for name, (text, mode) in FILES.items():
            _add(archive, name, text.encode(), mode)
    return stream.getvalue()


def unpack(directory: Path) -> None:
    """Make a directory of the image's files, as a container's root."""
    with tarfile.open(fileobj=io.BytesIO(layer())) as archive:
        archive.extractall(directory)


def described(config: Json, digest: str) -> Json:
    """Return what an image of one layer says of itself: how its containers begin, and its layer."""
    return {
        "architecture": _MACHINES[platform.machine()],
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }


def write(path: Path, commands: Mapping[str, Sequence[str]] = WAITING) -> None:
    """Write images as `docker save` does; `ctr image import` and `podman load` read that.

    `commands` has what a container of each image runs. All images have the same files.
    """
    files = layer()
    digest = hashlib.sha256(files).hexdigest()
    manifest = []
    with tarfile.open(path, "w") as archive:
        _add(archive, "layer.tar", files)
        for number, (name, command) in enumerate(commands.items()):
            settings = {"Env": ["PATH=/bin"], "Cmd": list(command), "WorkingDir": "/"}
            config = f"config{number}.json"
            _add(archive, config, json.dumps(described(settings, digest)).encode())
            manifest.append({"Config": config, "RepoTags": [name], "Layers": ["layer.tar"]})
        _add(archive, "manifest.json", json.dumps(manifest).encode())
