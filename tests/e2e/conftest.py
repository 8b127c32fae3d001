"""How the plugins are run, and the node that they run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.node import Node, node_with


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow each test here more time: it starts dozens of processes, beside other tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture
def node(bin_dir: Path) -> Iterator[Node]:
    """A pretend host of the test's own."""
    with node_with(bin_dir) as made:
        yield made
