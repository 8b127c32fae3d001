"""Make dist/release: tarball, .deb and .rpm, their SHA-256 sums and the bill of materials.

    python -m deploy.release [DIRECTORY]

The plugins are those of `make dist`: with the Python of `make interpreter`, where that was built.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.install import build_of
from cni_common.spec.names import VERSION
from deploy import freeze
from deploy.interpreter import place
from deploy.release import bill, packages, parts
from deploy.release.bill import Origin
from deploy.release.packages import PackageError

ROOT = packages.ROOT
_FILES = re.compile(r"pycni[-_].*\.(tar\.gz|deb|rpm|cdx\.json)|SHA256SUMS")


@dataclass(frozen=True)
class Made:
    """A bin directory, and what its bill of materials needs to know."""

    bin: Path
    origin: Origin
    stdlib: frozenset[str]  # the names of the modules of its Python's standard library

    def parts(self) -> set[str]:
        """Return the names of all parts of others."""
        inside = self.bin / ".pycni" / build_of(self.bin)
        return parts.parts(inside, self.stdlib) | parts.crates(inside)


def main(arguments: Sequence[str]) -> int:
    """Make the files and say which."""
    parser = argparse.ArgumentParser(prog="python -m deploy.release")
    parser.add_argument("directory", type=Path, nargs="?", default=ROOT / "dist/release")
    options = parser.parse_args(arguments)
    try:
        for file in make(made(), options.directory.absolute()):
            _say(f"{file}, {file.stat().st_size / 2**20:.1f} MiB")
    except (PackageError, OSError) as error:
        _say(f"error: {error}")
        return 1
    return 0


def make(of: Made, directory: Path) -> list[Path]:
    """Write all files of a release into `directory`; return their paths. Raises PackageError."""
    new = directory.with_name(f"{directory.name}.new")
    for replaced in (directory, new):
        foreign = [one.name for one in replaced.glob("*") if not _FILES.fullmatch(one.name)]
        if foreign:
            others = ", ".join(sorted(foreign))
            raise PackageError(f"'{replaced}' would be replaced, but it has other files: {others}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    bin = of.bin
    files = [packages.tarball(bin, new)]
    files += [packages.native(bin, new, kind) for kind in ("deb", "rpm")]
    files.append(new / f"pycni-{VERSION}-linux-{packages.architecture()}.cdx.json")
    files[-1].write_text(bill.write(bin, of.origin, of.parts(), packages.epoch()))
    files.append(new / "SHA256SUMS")
    files[-1].write_text(packages.sums(files[:-1]))
    shutil.rmtree(directory, ignore_errors=True)
    new.rename(directory)
    return sorted(directory.iterdir())


def made() -> Made:
    """Return what `make dist` makes. Raises PackageError."""
    if freeze.main([]):
        raise PackageError("there is no bundle, see above")
    if own := place.find():
        version, root = own.source, place.BUILT / place.RELEASE
        origin = Origin(root, None, version.partition("-")[0], f"python3.11 {version}")
    else:
        origin = Origin(None, None, platform.python_version(), "")
    return Made(ROOT / "dist/bin", origin, sys.stdlib_module_names)


def _say(text: str) -> None:
    sys.stderr.write(f"release: {text}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
