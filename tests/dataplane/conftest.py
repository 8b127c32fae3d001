"""The wirings, made once for all tests of a process, and the C programs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.dataplane.wiring import EDGES, PLAIN, WIRES, Wire, Wiring, Wirings
from tests.machine import DIST

CFLAGS = (
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wshadow",
    "-Werror",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow each test here more time: the first of a process makes its wiring."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def wirings(launchers: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wirings]:
    """All wirings, each made when a test needs it."""
    directories = {"one-shot": DIST, "engine": launchers}
    made = Wirings(directories, tmp_path_factory.mktemp("wirings"))
    yield made
    made.close()


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest, wirings: Wirings) -> Wire:
    """From a container to another one and to outside, and over a plain pair: the control."""
    return wirings.wire(request.param)


@pytest.fixture(params=EDGES)
def wiring(request: pytest.FixtureRequest, wirings: Wirings) -> Wiring:
    """A node with containers, attached one-shot and by the engine."""
    return wirings.of(request.param)


@pytest.fixture(params=[PLAIN, *EDGES])
def namespaces(request: pytest.FixtureRequest, wirings: Wirings) -> list[str]:
    """Two containers of one network and their node, and the plain pair: the control."""
    return wirings.namespaces(request.param)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make the program of tests/dataplane/<name>.c, once."""
    directory = tmp_path_factory.mktemp("programs")

    @cache
    def make(name: str) -> Path:
        source = Path(__file__).with_name(f"{name}.c")
        subprocess.run(["cc", *CFLAGS, "-o", directory / name, source], check=True)
        return directory / name

    return make
