"""Fixtures of the tests of the release: its files, and a Debian that each test may change."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from deploy.release import __main__ as release
from deploy.release import chroot, packages

HERE = Path(__file__).parent
TEST_SECONDS = 400  # the first test of a process makes the packages, and may wait for a build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow each test here more time."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


class Debian:
    """A Debian of a release, which ends with the test; the machine's own network is not there."""

    def __init__(self, root: Path) -> None:
        """Take the directory that it is in."""
        self.root = root

    def run(self, script: str, *, binds: Mapping[Path, str] | None = None, status: int = 0) -> str:
        """Run a shell script in it and return its output; fail unless it ends with `status`."""
        done = chroot.run(self.root, "/bin/bash", "-euc", script, binds=binds)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def names(self, directory: str) -> set[str]:
        """Return the names in one of its directories."""
        return {path.name for path in (self.root / directory.lstrip("/")).iterdir()}


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Callable[[str], Debian]]:
    """A function that gives a Debian by its release's name; changes are in memory, and end."""
    mounted: list[Path] = []

    def make(name: str) -> Debian:
        lower = chroot.PLACE / name
        if not lower.exists():
            pytest.fail(f"there is no '{lower}': run deploy/prerequisites.sh --packages")
        place = tmp_path / name
        place.mkdir()
        _mount("-t", "tmpfs", "tmpfs", str(place))
        mounted.append(place)
        for part in ("upper", "work", "root"):
            (place / part).mkdir()
        options = f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work"
        _mount("-t", "overlay", "-o", options, "overlay", str(place / "root"))
        mounted.append(place / "root")
        return Debian(place / "root")

    yield make
    for place in reversed(mounted):
        subprocess.run(["umount", "--lazy", place], check=True)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


@pytest.fixture(scope="session")
def made() -> release.Made:
    """The plugins that `make dist` makes."""
    return release.made()


@pytest.fixture(scope="session")
def files(made: release.Made, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The files of a release of these plugins, by the ends of their names."""
    folder = tmp_path_factory.mktemp("release") / "files"
    paths = release.make(made, folder)
    ends = (".tar.gz", ".deb", ".rpm", ".cdx.json", "SHA256SUMS")
    return {end: path for end in ends for path in paths if path.name.endswith(end)}


@pytest.fixture(scope="session")
def newer(other_dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The packages of a version to come."""
    folder = tmp_path_factory.mktemp("newer")
    return {f".{kind}": packages.native(other_dist, folder, kind) for kind in ("deb", "rpm")}
