"""A pytest plugin for other kernels, under which tests take up to forty times as long."""

from __future__ import annotations

import pytest

SECONDS = 900  # for any test, whatever it says itself


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put a time limit before those that the tests have."""
    for item in items:
        item.add_marker(pytest.mark.timeout(SECONDS), append=False)
