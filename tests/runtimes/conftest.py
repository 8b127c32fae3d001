"""The node that runtimes run on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtimes.node import RuntimeNode, runtime_node


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow each test here more time: runtimes start slowly, beside other tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(180))


@pytest.fixture
def node(bin_dir: Path) -> Iterator[RuntimeNode]:
    """A node of the test's own."""
    with runtime_node(bin_dir) as made:
        yield made
