"""Fixtures of the tests that need a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.kernel.containers import Container


@pytest.fixture
def container() -> Iterator[Callable[[], Container]]:
    """Make containers, which end with the test at the latest."""
    started: list[Container] = []

    def start() -> Container:
        started.append(Container())
        return started[-1]

    yield start
    for one in started:
        one.end()
