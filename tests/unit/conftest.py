"""Rules of every unit test: no process is started, no netlink socket is opened."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The same examples in every run, and no memory of earlier ones: a test that fails here fails
# everywhere.
settings.register_profile("steady", derandomize=True, database=None, deadline=None, max_examples=50)
settings.load_profile("steady")

_STARTS = frozenset({"subprocess.Popen", "os.fork", "os.exec", "os.posix_spawn", "os.system"})
_seen: list[str] = []


def _watch(event: str, args: tuple[object, ...]) -> None:
    if event in _STARTS or (event == "socket.__new__" and args[1] == socket.AF_NETLINK):
        _seen.append(f"{event} {args}")


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def _neither_process_nor_netlink(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that starts a process or opens a netlink socket."""
    _seen.clear()

    yield

    if request.node.get_closest_marker("starts_process") is None:
        assert not _seen, "a unit test touched what it must not"
