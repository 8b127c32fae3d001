"""NOTICE names each part of the frozen program that others have made, and its licence."""

from __future__ import annotations

import shutil
from importlib.metadata import distribution
from pathlib import Path

import pytest

from deploy.interpreter.place import is_own
from deploy.release.parts import BOOTLOADER, PYTHON, crates, packages, parts, rows
from tests.machine import ROOT

pytestmark = pytest.mark.timeout(90)  # the first test may have to wait for the build


def _bundle(dist: Path) -> Path:
    return next((dist / ".pycni").iterdir())


def test_each_part_has_a_row(dist: Path) -> None:
    """The program has no package, library or crate of others that NOTICE does not name."""
    found = parts(_bundle(dist))
    rust = crates(_bundle(dist))

    assert {PYTHON, "libz", "jsonschema", "rich"} <= found
    assert (BOOTLOADER in found) != is_own(_bundle(dist))
    assert {"rpds", "pyo3", "archery", "std"} <= rust
    assert (found | rust) - rows().keys() == set()


def test_no_row_is_left_of_a_package_that_is_gone(dist: Path) -> None:
    """A row of a package is there as long as the package is."""
    found = parts(_bundle(dist))
    known = set().union(*packages().values())

    assert (rows().keys() & known) - found == set()


def test_licences_are_those_that_the_packages_declare(dist: Path) -> None:
    """NOTICE states one of the licences that the package's own metadata offers."""
    licences = rows()

    wrong = {}
    for part in parts(_bundle(dist)) & licences.keys():
        if part in {PYTHON, BOOTLOADER, "musl", "glibc"} or part.startswith("lib"):
            continue  # no packages: their licences are in their own sources
        metadata = distribution(part).metadata
        declared = metadata["License-Expression"] or metadata["License"]
        if licences[part] not in declared.split(" OR "):
            wrong[part] = declared
    assert wrong == {}


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("lib/libssl.so.3", "libssl"),
        ("lib/hypothesis/core.pyc", "hypothesis"),
        ("lib/unknown/core.pyc", "unknown"),
        ("lib/hypothesis-6.0.dist-info/METADATA", "hypothesis"),
        ("lib/_foreign.cpython-311-x86_64-linux-gnu.so", "_foreign"),
        ("tool", "tool"),
    ],
)
def test_an_unlisted_part_is_found(dist: Path, tmp_path: Path, file: str, part: str) -> None:
    """The comparison with NOTICE tells of a library or package that comes with another build."""
    bundle = Path(shutil.copytree(_bundle(dist), tmp_path / "bundle"))
    (bundle / file).parent.mkdir(exist_ok=True)
    (bundle / file).touch()

    assert parts(bundle) - rows().keys() == {part}


def test_the_program_carries_the_licences(dist: Path) -> None:
    """LICENSE and NOTICE are this repository's; Python's licence is the one of its own version."""
    bundle = _bundle(dist)

    for name in ("LICENSE", "NOTICE"):
        assert (bundle / name).read_bytes() == (ROOT / name).read_bytes()
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (bundle / "LICENSE.python").read_text()
