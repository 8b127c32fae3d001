"""The bill of materials of a bundle, in the form of CycloneDX: its parts, versions and licences.

The parts are those that the bundle's files show; NOTICE has their licences.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

from agent.install import build_of
from cni_common.spec.names import VERSION
from deploy.release import parts

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

_NAMESPACE = uuid.UUID("5b2c1a3e-6a0f-4a4e-9a43-1f6f0c8f5d11")  # of the serial numbers
# Parts that Debian's packages bring, under the names of their packages, the newest first.
_DEBIAN = {
    "musl": ("musl-dev",),
    "glibc": ("libc6-dev",),
    "libgcc_s": ("libgcc-s1",),
    "libffi": ("libffi8", "libffi7"),
    "libmpdec": ("libmpdec-dev",),
    "libz": ("zlib1g",),
    "libexpat": ("libexpat1",),
}
_OF_LAUNCHERS = ("musl", "glibc")
_UNKNOWN = "unknown"


class Origin:
    """Where the parts of a bundle come from."""

    def __init__(self, root: Path | None, packages: Path | None, python: str, source: str) -> None:
        """`root` is the Debian that has made it, None this machine.

        `packages` is the directory of Python's packages, None the one of this process.
        `python` is the version of CPython, `source` the source package that it was built of.
        """
        self._root, self._packages = root, packages
        self.python, self.source = python, source

    def packages(self) -> dict[str, str]:
        """Return the versions of the Python packages, by their names."""
        found = distributions(path=[str(self._packages)]) if self._packages else distributions()
        return {parts.canonical(one.name): one.version for one in found}

    def debian(self, part: str) -> str:
        """Return the version of a part that comes with a Debian package."""
        names = _DEBIAN[part]
        # The launchers are always this machine's.
        root = [f"--root={self._root}"] if self._root and part not in _OF_LAUNCHERS else []
        words = ["dpkg-query", *root, "--show", "--showformat=${Version}\n", *names]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError:  # not a Debian
            return _UNKNOWN
        return (done.stdout.split() or [_UNKNOWN])[0]


def write(bin_dir: Path, origin: Origin, found: set[str], epoch: int) -> str:
    """Return the bill of the bundle in a bin directory, whose parts of others are `found`."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.output.json import JsonV1Dot6

    build = build_of(bin_dir)
    whole = _component("pycni", VERSION, "Apache-2.0", is_whole=True)
    bill = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, build),
        metadata=BomMetaData(component=whole, timestamp=datetime.fromtimestamp(epoch, UTC)),
    )
    licences = parts.rows()
    components = [
        _component(name, version, licences[name], purl)
        for name, (version, purl) in sorted(_versions(origin, found).items())
    ]
    for component in components:
        bill.components.add(component)
    bill.register_dependency(whole, components)
    return JsonV1Dot6(bill).output_as_string(indent=2) + "\n"


def _versions(origin: Origin, found: set[str]) -> Mapping[str, tuple[str, str]]:
    """Return version and package URL of each part."""
    packages = origin.packages()
    rust = parts.declared_crates()
    versions = {}
    for name in found:
        if name == parts.PYTHON:
            versions[name] = (origin.python, _debian_source(origin.source))
        elif name == parts.BOOTLOADER:
            versions[name] = (
                packages["pyinstaller"],
                f"pkg:pypi/pyinstaller@{packages['pyinstaller']}",
            )
        elif name in packages:
            versions[name] = (packages[name], f"pkg:pypi/{name}@{packages[name]}")
        elif name in _DEBIAN:
            version = origin.debian(name)
            versions[name] = (version, f"pkg:deb/debian/{_DEBIAN[name][0]}@{version}")
        else:
            version = rust.get(name, _UNKNOWN)
            versions[name] = (version, f"pkg:cargo/{name}@{version}" if name in rust else "")
    return versions


def _debian_source(source: str) -> str:
    name, _, version = source.partition(" ")
    return f"pkg:deb/debian/{name}@{version}?arch=source" if version else ""


def _component(
    name: str, version: str, licence: str, purl: str = "", *, is_whole: bool = False
) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import LicenseExpression
    from packageurl import PackageURL

    return Component(
        name=name,
        version=version,
        type=ComponentType.APPLICATION if is_whole else ComponentType.LIBRARY,
        licenses=[LicenseExpression(licence)],
        purl=PackageURL.from_string(purl) if purl else None,
        bom_ref=purl or f"{name}@{version}",
    )
