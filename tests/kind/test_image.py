"""The image: made without a registry, small, the same each time, and a container that starts."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from deploy.image import build
from plugins import TYPES


@pytest.fixture(scope="module")
def contents(archive: Path) -> dict[str, tarfile.TarInfo]:
    """The files of all layers by name."""
    found: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(archive) as packed:
        manifest = _blob(packed, _manifest(packed)["digest"])
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=_file(packed, layer["digest"])) as files:
                found |= {member.name: member for member in files}
    return found


def _file(packed: tarfile.TarFile, digest: str) -> Any:
    return packed.extractfile(f"blobs/sha256/{digest.partition(':')[2]}")


def _blob(packed: tarfile.TarFile, digest: str) -> Any:
    return json.load(_file(packed, digest))


def _manifest(packed: tarfile.TarFile) -> Any:
    index = packed.extractfile("index.json")
    assert index
    (found,) = json.load(index)["manifests"]
    return found


def test_the_same_each_time(archive: Path, tmp_path: Path) -> None:
    """A second build gives the same archive, byte for byte, at another place and time."""
    again = tmp_path / "again.tar"

    build.make(again)

    assert build.sha256(again) == build.sha256(archive)


def test_another_time_is_another_image(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison sees a difference where there is one: here in the dates of the files."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    other = tmp_path / "other.tar"

    build.make(other)

    assert build.sha256(other) != build.sha256(archive)


def test_name(archive: Path) -> None:
    """The archive carries the name that the manifest asks for."""
    with tarfile.open(archive) as packed:
        annotations = _manifest(packed)["annotations"]

    assert annotations == {"org.opencontainers.image.ref.name": build.NAME}


def test_contents(contents: dict[str, tarfile.TarInfo]) -> None:
    """It has plugins, agent and licences, as files of root that root alone writes, and is small."""
    assert {f"opt/pycni/bin/{name}" for name in ("pycni", *TYPES)} <= contents.keys()
    names = {Path(name).name for name in contents}
    assert {"pycni-agent", "LICENSE", "NOTICE", "LICENSE.python", "libc.so.6"} <= names
    assert "usr/share/doc/libc6/copyright" in contents
    regular = [member for member in contents.values() if member.isreg()]
    assert sum(member.size for member in regular) < build.BYTES_MAX
    assert {(member.uid, member.gid) for member in contents.values()} == {(0, 0)}
    assert [member.name for member in regular if member.mode & 0o022] == []
