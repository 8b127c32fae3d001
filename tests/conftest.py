"""Fixtures for all tests."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import freeze
from tests import other_build
from tests.machine import DIST, Machine, machine_at


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses a machine twice: with its plugins in this process, and by an engine."""
    if "machine" in metafunc.fixturenames:
        alone = metafunc.definition.get_closest_marker("without_engine")
        edges = ["alone"] if alone else ["alone", "engine"]
        metafunc.parametrize("machine", edges, indirect=True, scope="function")


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """A pretend host of the test's own."""
    name = f"net-{uuid.uuid4().hex[:12]}"
    with machine_at(tmp_path, name, by_engine=request.param == "engine") as made:
        yield made


@pytest.fixture(scope="session")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launchers of dist/bin alone: without an engine they can do nothing."""
    assert freeze.main([]) == 0
    directory = tmp_path_factory.mktemp("launchers")
    first = shutil.copy2(DIST / "pycni", directory)  # the directory may be on another file system
    for path in DIST.iterdir():
        if path.is_file() and path.name != "pycni":
            os.link(first, directory / path.name)
    return directory


@pytest.fixture(scope="session")
def other_dist() -> Path:
    """A bin directory of another version, without the loopback plugin."""
    return other_build.make()


@pytest.fixture(params=["one-shot", "engine"])
def bin_dir(request: pytest.FixtureRequest, launchers: Path) -> Path:
    """A directory for CNI_PATH. Each test runs without an engine, and with one."""
    return launchers if request.param == "engine" else DIST
