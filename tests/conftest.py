"""Fixtures for all tests."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine import Machine, machine_at


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A pretend host of the test's own."""
    with machine_at(tmp_path, f"net-{uuid.uuid4().hex[:12]}") as made:
        yield made
