"""When a build of the frozen programs is repeated."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from deploy import freeze


def digest() -> str:
    """Return the digest of the sources of the tree."""
    found = hashlib.sha256()
    freeze.add_files(found, ["plugins"])
    return found.hexdigest()


def test_bytecode_that_is_being_written_changes_no_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may compile a module at that moment, and one that is killed leaves it so."""
    monkeypatch.setattr(freeze, "ROOT", tmp_path)
    cache = tmp_path / "plugins/__pycache__"
    cache.mkdir(parents=True)
    source = tmp_path / "plugins/bridge.py"
    source.write_text("one = 1\n")
    before = digest()

    (cache / "bridge.cpython-311.pyc").write_bytes(b"compiled")
    (cache / "bridge.cpython-311.pyc.139812345").write_bytes(b"comp")

    assert digest() == before
    source.write_text("one = 2\n")
    assert digest() != before
