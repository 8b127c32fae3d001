"""When a build of the frozen programs is repeated, and what it takes from pyroute2."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import pyroute2
import pytest

from deploy import freeze
from deploy.frozen import of_pyroute2


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


def test_the_bundle_has_what_the_suite_takes_from_pyroute2() -> None:
    """Each class that a source names is one of the bundle's pyroute2, and the package's own."""
    taken = {
        alias.name
        for part in ("agent", "cni_common", "commands", "plugins")
        for path in (freeze.ROOT / part).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "pyroute2"
        for alias in node.names
    }

    assert taken == {*of_pyroute2.NAMES}
    for name in taken:
        assert getattr(of_pyroute2, name) is getattr(pyroute2, name)
    with pytest.raises(AttributeError):
        of_pyroute2.config  # noqa: B018 - a module, which Python loads then
