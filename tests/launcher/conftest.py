"""What the tests of the frozen program and of its installation share."""

import shutil
import subprocess
from pathlib import Path

import pytest

from deploy import freeze
from tests.machine import ROOT


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make dist` makes, in a place of this test process's own."""
    assert freeze.main([]) == 0
    place = tmp_path_factory.mktemp("dist") / "bin"
    _copy(ROOT / "dist/bin", place)
    return place


@pytest.fixture(scope="session")
def other_dist(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another build of the same, without the loopback plugin."""
    place = tmp_path_factory.mktemp("other") / "bin"
    _copy(dist, place)
    bundle = next((place / ".pycni").iterdir()).rename(place / ".pycni/other")
    variables = {
        "OUTPUT": bundle / "launcher",
        "BUILD": "0",
        "BUNDLE": ".pycni/other/pycni",
    }
    words = [f"{name}={value}" for name, value in variables.items()]
    (bundle / "launcher").unlink()
    subprocess.run(["make", "--silent", "-C", "launcher", *words], cwd=ROOT, check=True)
    for name in ("bridge", "host-local", "loopback", "pycni"):
        (place / name).unlink()
        if name != "loopback":
            (place / name).hardlink_to(bundle / "launcher")
    return place


def _copy(source: Path, target: Path) -> None:
    """Copy a directory with the links between its files."""
    shutil.copytree(source / ".pycni", target / ".pycni")
    launcher = next((target / ".pycni").iterdir()) / "launcher"
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).hardlink_to(launcher)
