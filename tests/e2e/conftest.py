"""How the plugins are run, and the node that they run on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.node import Node, node_with
from tests.machine import CNI_BIN

# Every directory with our executables; each test runs once with each of them.
BIN_DIRS = {"scripts": CNI_BIN}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow each test here more time: it starts dozens of processes, beside other tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(90))


@pytest.fixture(params=list(BIN_DIRS.values()), ids=list(BIN_DIRS))
def bin_dir(request: pytest.FixtureRequest) -> Path:
    """A directory for CNI_PATH."""
    directory: Path = request.param
    return directory


@pytest.fixture
def node(bin_dir: Path) -> Iterator[Node]:
    """A pretend host of the test's own."""
    with node_with(bin_dir) as made:
        yield made
