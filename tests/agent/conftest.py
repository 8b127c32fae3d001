"""Fixtures of the tests of the agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.nodes import Lan
from tests.machine import machine_at


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    """Networks between nodes, without nodes yet."""
    with machine_at(tmp_path, "lan") as machine:
        made = Lan(tmp_path, machine)
        yield made
        made.close()
