"""Images of one layer as archives, as `docker save` writes them, and docker and ctr load them."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.machine import Json

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def write(path: Path, layer: Path, names: Sequence[str], config: Json) -> None:
    """Write an image of the files in the tar archive `layer` under some names.

    `config` is the part of the OCI image configuration with Entrypoint, Env and so on.
    """
    with layer.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    image = {
        "architecture": _MACHINES[platform.machine()],
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [*names], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        _add(archive, "config.json", json.dumps(image).encode())
        _add(archive, "manifest.json", json.dumps(manifest).encode())
        archive.add(layer, "layer.tar")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
