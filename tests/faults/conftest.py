"""Rigs for the tests below."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.node import Node
from tests.faults.inject import Injector
from tests.faults.rig import Rig
from tests.machine import DIST
from tests.scope import ALL


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow each test here more time: it starts hundreds of processes, beside other tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(3000 if ALL else 240))


@pytest.fixture
def edge() -> str:
    """How plugins run: one-shot, each under the injector, or served by an engine under it."""
    return "one-shot"


@pytest.fixture
def rig(edge: str, launchers: Path, tmp_path: Path) -> Iterator[Rig]:
    """A node of the test's own, with an injector."""
    has_engine = edge == "engine"
    node, injector = Node(launchers if has_engine else DIST), Injector(tmp_path, spared=has_engine)
    try:
        yield Rig(node, injector, has_engine=has_engine)
    finally:
        node.close()
