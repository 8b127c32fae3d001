"""How the plugins are run, and the node that they run on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.node import Node, node_with
from tests.e2e.upgrades import make_other_build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow each test here more time: it starts dozens of processes, beside other tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(90))


@pytest.fixture
def node(bin_dir: Path) -> Iterator[Node]:
    """A pretend host of the test's own."""
    with node_with(bin_dir) as made:
        yield made


@pytest.fixture
def other_build(tmp_path: Path) -> Path:
    """What `make dist` makes of other sources."""
    place = tmp_path / "other"
    make_other_build(place)
    return place
