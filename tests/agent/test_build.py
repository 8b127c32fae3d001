"""dist/agent: two builds of the same sources are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import scope
from tests.machine import ROOT
from tests.rebuild import assert_the_same_again


@pytest.mark.timeout(600)
@pytest.mark.skipif(not scope.ALL, reason="it takes a minute: in make test-all")
def test_a_second_build_is_the_same(tmp_path: Path) -> None:
    """Frozen once more, the agent has the same bytes in each file."""
    assert_the_same_again("deploy.freeze_agent", ROOT / "dist/agent", tmp_path / "again")
