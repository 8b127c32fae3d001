"""Fixtures for all tests."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine import Machine, machine_at


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
