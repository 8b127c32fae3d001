"""The cost of host-local, counted in system calls, does not depend on the number of leases."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from plugins import host_local
from plugins.host_local import allocate
from plugins.host_local.store import Store
from tests.scope import ALL
from tests.unit.host_local.node import Node

BITS = 16 if ALL else 12  # of the number of leases: it takes a minute to write 65,000
NET4, NET6 = f"198.18.0.0/{32 - BITS}", "fd5a:18::/64"
MANY = (1 << BITS) - 500
ALL_BUT_ONE = (1 << BITS) - 4  # without network, gateway and broadcast address
COMMANDS = ("ADD", "CHECK", "DEL")
MODULES = frozenset({"posix", "fcntl", "_socket", "time", "select", "_posixsubprocess"})
# Each is a matter of microseconds: nothing is listed, flushed, waited for or sent.
UNDER_THE_LOCK = frozenset(
    {
        *("open", "close", "read", "pread", "write", "pwrite", "fstat", "stat", "utime"),
        *("link", "unlink", "replace", "flock", "geteuid", "getuid", "urandom", "fspath"),
        *("fsencode", "fsdecode", "time_ns", "clock_gettime_ns"),
    }
)
BLOCKS = 1 << BITS - 12  # of the bitmaps: all are looked at for the one address that is free


class Count:
    """The calls into the system by one command."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self.locked: list[str] = []  # those under the lock
        self.depth = 0


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Count]:
    """Count what this process asks of the system, and what of it while a store is locked."""
    count = Count()

    class Watched(Store):
        def relock(self) -> None:
            super().relock()
            count.depth += 1

        def __exit__(self, *args: Any) -> None:
            super().__exit__(*args)
            count.depth = 0

    def see(_frame: object, event: str, function: Any) -> None:
        if event == "c_call" and function.__module__ in MODULES:
            count.all.append(function.__name__)
            if count.depth:
                count.locked.append(function.__name__)

    with monkeypatch.context() as patch:
        patch.setattr(allocate, "Store", Watched)
        patch.setattr(host_local, "Store", Watched)
        sys.setprofile(see)
        try:
            yield count
        finally:
            sys.setprofile(None)


def fill(node: Node, first: str, number: int) -> None:
    """Write that many leases of others, from the address `first` on."""
    node.store.mkdir(parents=True)
    start = ip_address(first)
    for offset in range(number):
        name = node.store / str(start + offset)
        name.write_bytes(f"other{offset}\r\neth0".encode())


def costs(node: Node, subnet: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Count]:
    """Return what each command costs once the index is there, for a container among others."""
    config = node.config(subnet)
    node.add(config, "first")
    node.call("DEL", config, "first")
    found = {}
    result: dict[str, Any] = {}
    for command in COMMANDS:
        prev = {"prevResult": result} if command == "CHECK" else {}
        with counting(monkeypatch) as count:
            output = node.call(command, {**config, **prev}, "mine")
        assert "code" not in output, output
        result = output or result
        found[command] = count
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("subnet", "first", "leases", "more"),
    [
        (NET4, "198.18.0.2", ALL_BUT_ONE, BLOCKS),
        (NET6, "fd5a:18::2", MANY, 0),
    ],
    ids=["one-free", "ipv6"],
)
def test_as_many_calls_as_without_leases(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    subnet: str,
    first: str,
    leases: int,
    more: int,
) -> None:
    """With many leases a command asks no more of the system than with none, but for bitmaps.

    Under the lock it does nothing that can take long.
    """
    empty, full = Node(tmp_path / "empty"), Node(tmp_path / "full")
    fill(full, first, leases)

    without, among = (costs(node, subnet, monkeypatch) for node in (empty, full))

    for command in COMMANDS:
        few, many = without[command], among[command]
        blocks = more if command == "ADD" else 0
        assert len(few.all) <= len(many.all) <= len(few.all) + blocks, command
        assert len(few.locked) <= len(many.locked) <= len(few.locked) + blocks, command
        for count in (few, many):
            assert set(count.locked) <= UNDER_THE_LOCK, command
            assert count.locked
            assert "flock" in count.all
