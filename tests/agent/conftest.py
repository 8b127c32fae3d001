"""Fixtures of the tests of the agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import freeze_agent
from tests.agent.host import AgentHost
from tests.agent.nodes import Lan
from tests.machine import ROOT, machine_at


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    """Networks between nodes, without nodes yet."""
    with machine_at(tmp_path, "lan") as machine:
        made = Lan(tmp_path, machine)
        yield made
        made.close()


@pytest.fixture
def host() -> Iterator[AgentHost]:
    """A node of the test's own, without an agent yet."""
    made = AgentHost()
    yield made
    made.close()


@pytest.fixture(scope="session")
def frozen() -> Path:
    """The frozen agent."""
    freeze_agent.make(ROOT / "dist/agent")
    return ROOT / "dist/agent/pycni-agent"
