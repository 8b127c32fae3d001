"""Fixtures of the tests that need a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.containers import Container

# Files whose tests ask whether dead containers are gone. Such a look opens every namespace of the
# machine for a moment, and what is open counts as alive: two looks at once would see each other's.
LIVENESS_FILES = frozenset(
    f"test_{name}"
    for name in (
        *("bandwidth_commands", "bridge_gateway", "bridge_gc", "commands", "commands_plugins"),
        *("concurrency", "firewall_commands", "host_local_gc", "host_local_index"),
        *(
            "host_local_reclaim",
            "inspect",
            "liveness",
            "masquerade",
            "portmap_owners",
            "ptp",
            "repair",
        ),
        *("topology", "unformatted"),
    )
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run one after the other the tests that would disturb each other (--dist loadgroup)."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem in LIVENESS_FILES:
            item.add_marker(pytest.mark.xdist_group("liveness"))


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
