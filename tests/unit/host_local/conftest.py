"""Fixtures of the host-local tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.host_local.node import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node without any lease."""
    return Node(tmp_path)
