"""NOTICE names each part of the frozen program that others have made, and its licence."""

from __future__ import annotations

import json
import marshal
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest

from deploy.frozen.rewrite import OURS
from tests.machine import ROOT

pytestmark = pytest.mark.timeout(90)  # the first test may have to wait for the build

PYTHON, BOOTLOADER = "CPython", "PyInstaller bootloader"
TEXTS = {"LICENSE", "NOTICE", "LICENSE.python"}
# Crates that run in the compiler alone: pyo3's macros and its look at the machine.
OF_THE_COMPILER = ("-macros", "-build-config")
# The parts of Rust's standard library are crates of their own.


def _rows() -> dict[str, str]:
    """Return the licence of each part in NOTICE."""
    rows = {}
    for line in (ROOT / "NOTICE").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and cells[1] not in ("Part", "---"):
            part = re.split(r",| \(", cells[1])[0]
            assert part not in rows, f"{part} has two rows"
            rows[part] = cells[2].partition(",")[0]
    return rows


def _parts(bundle: Path) -> set[str]:
    """Return the names of all parts that others have made."""
    found = {_libc(bundle / "launcher/pycni"), BOOTLOADER}
    library = bundle / "lib"
    archives = [library / name for name in ("modules", "other-modules")]
    for archive in archives:
        modules = archive.read_bytes()
        index = marshal.loads(modules[4 : 4 + int.from_bytes(modules[:4], "little")])
        names = {name.partition(".")[0] for name in index}
        found |= {part for name in names for part in _of_module(name)}
    for path in library.rglob("*"):
        if path.is_file() and path not in archives:
            found |= _of_file(path.relative_to(library))
    for path in bundle.iterdir():
        if path.name not in {"launcher", "pycni", "lib", *TEXTS}:
            found.add(path.name)
    return found


def _libc(launcher: Path) -> str:
    return "glibc" if b"GLIBC" in launcher.read_bytes() else "musl"


def _of_file(path: Path) -> set[str]:
    top = path.parts[0]
    if top.startswith("python") and path.parts[1] == "lib-dynload":
        return {PYTHON}
    if top.endswith(".dist-info"):
        return {_canonical(top.partition("-")[0])}
    if len(path.parts) > 1:
        return set(_of_module(top))
    stem = top.partition(".so")[0]
    if stem.startswith("libpython"):
        return {PYTHON}
    return set(_of_module(stem.partition(".")[0])) if not stem.startswith("lib") else {stem}


def _of_module(name: str) -> Iterator[str]:
    """Yield the parts that a module or package belongs to, its name if nothing is known of it."""
    if name in OURS or name.startswith("standin_") or name == "_setns":
        return
    if name in sys.stdlib_module_names:
        yield PYTHON
        return
    yield from _packages().get(name, {name})


@cache
def _packages() -> dict[str, set[str]]:
    """Return the names of the installed packages that have a module of each name."""
    return {
        module: {_canonical(name) for name in names}
        for module, names in packages_distributions().items()
    }


def _canonical(distribution_name: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution_name).lower()


def _crates(bundle: Path) -> set[str]:
    """Return the crates in the bundle's library of Rust: those it mentions, and those declared."""
    library = next((bundle / "lib/rpds").glob("*.so")).read_bytes()
    mentioned = {
        match.decode()
        for match in re.findall(rb"/([a-z0-9_-]+)-\d+\.\d+\.\d+[a-z0-9.+-]*/src/", library)
    }
    if re.search(rb"/rustc/[0-9a-f]+/library/", library):
        mentioned.add("std")
    return mentioned | _declared_crates()


def _declared_crates() -> set[str]:
    [file] = [one for one in distribution("rpds-py").files or [] if one.name.endswith("x.json")]
    bill = json.loads(Path(str(file.locate())).read_text())
    names = {one["bom-ref"]: one["name"] for one in bill["components"]}
    needed = {one["ref"]: one.get("dependsOn", []) for one in bill["dependencies"]}
    seen: set[str] = set()
    waiting = list(needed[bill["metadata"]["component"]["bom-ref"]])
    while waiting:
        reference = waiting.pop()
        if reference not in seen and not names[reference].endswith(OF_THE_COMPILER):
            seen.add(reference)
            waiting += needed[reference]
    return {names[reference] for reference in seen}


def _bundle(dist: Path) -> Path:
    return next((dist / ".pycni").iterdir())


def test_each_part_has_a_row(dist: Path) -> None:
    """The program has no package, library or crate of others that NOTICE does not name."""
    parts = _parts(_bundle(dist))
    crates = _crates(_bundle(dist))

    assert {PYTHON, BOOTLOADER, "libz", "jsonschema", "rich"} <= parts
    assert {"rpds", "pyo3", "archery", "std"} <= crates
    assert (parts | crates) - _rows().keys() == set()


def test_no_row_is_left_of_a_package_that_is_gone(dist: Path) -> None:
    """A row of a package is there as long as the package is."""
    parts = _parts(_bundle(dist))
    packages = set().union(*_packages().values())

    assert (_rows().keys() & packages) - parts == set()


def test_licences_are_those_that_the_packages_declare(dist: Path) -> None:
    """NOTICE states one of the licences that the package's own metadata offers."""
    rows = _rows()

    wrong = {}
    for part in _parts(_bundle(dist)) & rows.keys():
        if part in {PYTHON, BOOTLOADER, "musl", "glibc"} or part.startswith("lib"):
            continue  # no packages: their licences are in their own sources
        metadata = distribution(part).metadata
        declared = metadata["License-Expression"] or metadata["License"]
        if rows[part] not in declared.split(" OR "):
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

    assert _parts(bundle) - _rows().keys() == {part}


def test_the_program_carries_the_licences(dist: Path) -> None:
    """LICENSE and NOTICE are this repository's; Python's licence is the one of its own version."""
    bundle = _bundle(dist)

    for name in ("LICENSE", "NOTICE"):
        assert (bundle / name).read_bytes() == (ROOT / name).read_bytes()
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (bundle / "LICENSE.python").read_text()
