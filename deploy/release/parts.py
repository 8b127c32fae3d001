"""The parts of others in a bundle: which there are, and what NOTICE says of them."""

from __future__ import annotations

import json
import marshal
import re
import sys
from collections.abc import Collection, Iterator
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

from cni_common.kernel.link_deletion import SENDER
from deploy.frozen.rewrite import OURS
from deploy.interpreter.place import is_own

ROOT = Path(__file__).resolve().parents[2]
OWN = {*OURS, "_setns", "agent", "snapshot", "start"}
# Libraries that are linked into the program of deploy/interpreter.
LINKED = ("libffi", "libmpdec", "libz")
PYTHON, BOOTLOADER = "CPython", "PyInstaller bootloader"
TEXTS = {"LICENSE", "NOTICE", "LICENSE.python"}
# Crates that run in the compiler alone: pyo3's macros and its look at the machine.
OF_THE_COMPILER = ("-macros", "-build-config")


def rows() -> dict[str, str]:
    """Return the licence of each part in NOTICE."""
    found: dict[str, str] = {}
    for line in (ROOT / "NOTICE").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and cells[1] not in ("Part", "---"):
            part = re.split(r",| \(", cells[1])[0]
            assert part not in found, f"{part} has two rows"
            found[part] = cells[2].partition(",")[0]
    return found


def parts(bundle: Path, stdlib: Collection[str] = sys.stdlib_module_names) -> set[str]:
    """Return the names of all parts that others have made.

    `stdlib` are the names of the standard library's modules, of the Python that is in the bundle.
    """
    found = {_libc(bundle / "launcher/pycni")}
    library = bundle / "lib"
    if is_own(bundle):
        found |= {PYTHON, *LINKED}
    else:
        found.add(BOOTLOADER)
    archives = [library / name for name in ("modules", "other-modules")]
    for archive in archives:
        modules = archive.read_bytes()
        index = marshal.loads(modules[4 : 4 + int.from_bytes(modules[:4], "little")])
        names = {name.partition(".")[0] for name in index}
        found |= {part for name in names for part in _of_module(name, stdlib)}
    for path in library.rglob("*"):
        if path.is_file() and path not in archives:
            found |= _of_file(path.relative_to(library), stdlib)
    for path in bundle.iterdir():
        if path.name not in {"launcher", "pycni", SENDER, "lib", "units", *TEXTS}:
            found.add(path.name)
    return found


def _libc(launcher: Path) -> str:
    return "glibc" if b"GLIBC" in launcher.read_bytes() else "musl"


def _of_file(path: Path, stdlib: Collection[str]) -> set[str]:
    top = path.parts[0]
    if top.startswith("python") and path.parts[1] == "lib-dynload":
        return {PYTHON}
    if top.endswith(".dist-info"):
        return {canonical(top.partition("-")[0])}
    if len(path.parts) > 1:
        return set(_of_module(top, stdlib))
    stem = top.partition(".so")[0]
    if stem.startswith("libpython"):
        return {PYTHON}
    return {stem} if stem.startswith("lib") else set(_of_module(stem.partition(".")[0], stdlib))


def _of_module(name: str, stdlib: Collection[str]) -> Iterator[str]:
    """Yield the parts that a module or package belongs to, its name if nothing is known of it."""
    if name in OWN or name.startswith("standin_"):
        return
    if name in stdlib:
        yield PYTHON
        return
    yield from packages().get(name, {name})


@cache
def packages() -> dict[str, set[str]]:
    """Return the names of the installed packages that have a module of each name."""
    return {
        module: {canonical(name) for name in names}
        for module, names in packages_distributions().items()
    }


def canonical(distribution_name: str) -> str:
    """Return a package's name as the index of packages has it."""
    return re.sub(r"[-_.]+", "-", distribution_name).lower()


def crates(bundle: Path) -> set[str]:
    """Return the crates in the bundle's library of Rust: those it mentions, and those declared."""
    library = next((bundle / "lib/rpds").glob("*.so")).read_bytes()
    mentioned = {
        match.decode()
        for match in re.findall(rb"/([a-z0-9_-]+)-\d+\.\d+\.\d+[a-z0-9.+-]*/src/", library)
    }
    if re.search(rb"/rustc/[0-9a-f]+/library/", library):
        mentioned.add("std")
    return mentioned | declared_crates().keys()


def declared_crates() -> dict[str, str]:
    """Return the versions of the crates that rpds-py declares, by their names."""
    [file] = [one for one in distribution("rpds-py").files or [] if one.name.endswith("x.json")]
    bill = json.loads(Path(str(file.locate())).read_text())
    components = {one["bom-ref"]: one for one in bill["components"]}
    needed = {one["ref"]: one.get("dependsOn", []) for one in bill["dependencies"]}
    seen: set[str] = set()
    waiting = list(needed[bill["metadata"]["component"]["bom-ref"]])
    while waiting:
        reference = waiting.pop()
        if reference not in seen and not components[reference]["name"].endswith(OF_THE_COMPILER):
            seen.add(reference)
            waiting += needed[reference]
    return {components[one]["name"]: components[one]["version"] for one in seen}
