"""host-local when the disk fails and processes die at any moment."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_common.spec.names import Address
from plugins.host_local import allocate, store
from tests.kernel.sweeps import file_of
from tests.scope import ALL, one_of_each
from tests.unit.host_local.node import Node

# Not one address of the test host may lie in here: GC spares what is seen in use.
NET4, NET6 = "198.18.64.0/24", "fd5a:18::/64"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node without any lease."""
    return Node(tmp_path)


class _Killed(BaseException):
    """Stands for SIGTERM, which the main program turns into such an exception."""


def _failing_store(fail_at: int, failure: Callable[[], object]) -> tuple[type[store.Store], Any]:
    """Return a Store whose disk operation number `fail_at` fails, and the list of operations.

    Each has what it is for: without the order of addresses, or an index, a call succeeds.
    """
    done: list[str] = []

    class FailingStore(store.Store):
        _for = ""

        def disk(self, call: Any, *args: Any, **kwargs: Any) -> Any:
            names = [file_of(one) for one in args if isinstance(one, str)]
            done.append(f"{call.__name__} {self._for or ' '.join(names[-1:])}")
            if len(done) == fail_at:
                if call is os.close:
                    os.close(*args)
                failure()
            return call(*args, **kwargs)

        def set_last_reserved(self, index: int, address: Address) -> None:
            self._for = "last_reserved_ip"
            try:
                super().set_last_reserved(index, address)
            finally:
                self._for = ""

    return FailingStore, done


def _raise(error: BaseException) -> Callable[[], object]:
    def failure() -> object:
        raise error

    return failure


OPERATIONS_MAX = 400  # more than a call needs
# Whether a call finds an index that fits, or has to make it: as for few leases, or for many.
INDEXES = pytest.mark.parametrize("indexed", ["indexed", "not-indexed", "renewed"], indirect=True)


@pytest.fixture
def indexed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there is an index that fits."""
    if request.param == "renewed":
        monkeypatch.setattr(store, "LARGE_BYTES", -1)
    return bool(request.param == "indexed")


def _shared(node: Node) -> tuple[dict[str, str], list[str]]:
    return node.leases(), node.records()


def _prepare(node: Node, config: dict[str, Any], *, indexed: bool) -> None:
    """Have an index that fits, with another's leases, or none."""
    assert node.call("DEL", config, "other") == {}
    node.add(config, "other")
    if not indexed:
        shutil.rmtree(node.root / "run" / "indexes")


def _numbers(node: Node, config: dict[str, Any], command: str, *, indexed: bool) -> Iterator[int]:
    """Yield the numbers of the disk operations that are to fail, at last one that none has.

    For a sample, one of each kind is of those of a call that does not fail.
    """
    if ALL:
        yield from range(1, OPERATIONS_MAX)
        return
    _prepare(node, config, indexed=indexed)
    if command == "DEL":
        node.add(config)
    failing, done = _failing_store(0, lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocate, "Store", failing)
        node.call(command, config)
    assert node.call("DEL", config) == {}
    yield from (position + 1 for position in one_of_each(done))
    yield OPERATIONS_MAX - 2


@INDEXES
def test_any_failure_of_the_disk_is_taken_back(
    node: Node, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    """If any disk operation of an ADD fails, all is as it was before."""
    config = node.config(NET4, NET6)
    failed = 0
    for number in _numbers(node, config, "ADD", indexed=indexed):
        _prepare(node, config, indexed=indexed)
        before = _shared(node)
        failing, _done = _failing_store(number, _raise(OSError(errno.ENOSPC, "No space left")))
        monkeypatch.setattr(allocate, "Store", failing)

        output = node.call("ADD", config, f"c{number}")

        monkeypatch.setattr(allocate, "Store", store.Store)
        if number > len(_done):
            assert node.call("DEL", config, f"c{number}") == {}
            break
        if "code" in output:
            failed += 1
            assert "No space left" in output["msg"]
            assert _shared(node) == before, _done[-1]
        else:  # only the order of addresses, or a second name of a lease, was at stake
            assert set(node.leases()) - {".pycni-new"} == set(before[0]) | {
                ip["address"].partition("/")[0] for ip in output["ips"]
            }
            assert node.call("DEL", config, f"c{number}") == {}
            assert _shared(node) == before
    assert failed > (12 if ALL else 4)
    assert number < OPERATIONS_MAX - 1


@INDEXES
def test_terminated_at_any_moment(
    node: Node, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    """SIGTERM at any disk operation leaves nothing, or what the next ADD removes."""
    config = node.config(NET4, NET6)
    for number in _numbers(node, config, "ADD", indexed=indexed):
        _prepare(node, config, indexed=indexed)
        before = _shared(node)
        failing, done = _failing_store(number, _raise(_Killed()))
        monkeypatch.setattr(allocate, "Store", failing)

        try:
            node.call("ADD", config, f"c{number}")
        except _Killed:
            pass
        else:
            break

        monkeypatch.setattr(allocate, "Store", store.Store)
        assert _shared(node) == before or done[number - 1].startswith("unlink ")
        node.add(config, "next")
        node.call("DEL", config, "next")
        assert _shared(node) == before
    assert len(done) < number < OPERATIONS_MAX - 1


def _add_and_die(root: Path, config: dict[str, Any], number: int) -> None:
    failing, _done = _failing_store(number, lambda: os._exit(9))
    allocate.Store = failing  # type: ignore[attr-defined]
    Node(root).call("ADD", config, f"c{number}")


@INDEXES
def test_killed_at_any_moment(node: Node, indexed: bool) -> None:
    """After SIGKILL at any disk operation no lease is torn, others get theirs, and DEL frees."""
    config = node.config(NET4, NET6)
    for number in _numbers(node, config, "ADD", indexed=indexed):
        _prepare(node, config, indexed=indexed)
        before = _shared(node)
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_add_and_die, args=(node.root, config, number))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == 9

        torn = {k: v for k, v in node.leases().items() if k[0] != "." and "\r\neth0" not in v}
        assert torn == {}
        assert len(set(node.add(config, "next")) - set(before[0])) == 2
        assert ".pycni-new" not in node.leases()
        for containerid in ("next", f"c{number}"):
            assert node.call("DEL", config, containerid) == {}
        assert _shared(node) == before
    assert 20 < number < OPERATIONS_MAX - 1


@INDEXES
def test_failed_delete_can_be_repeated(
    node: Node, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    """If any disk operation of a DEL fails, DEL says so, and the next one frees the rest."""
    config = node.config(NET4, NET6)
    failed = 0
    for number in _numbers(node, config, "DEL", indexed=indexed):
        _prepare(node, config, indexed=indexed)
        before = _shared(node)
        node.add(config)
        if not indexed:
            shutil.rmtree(node.root / "run" / "indexes")
        failing, done = _failing_store(number, _raise(OSError(errno.EROFS, "Read-only")))
        monkeypatch.setattr(allocate, "Store", failing)

        output = node.call("DEL", config)

        monkeypatch.setattr(allocate, "Store", store.Store)
        if number > len(done):
            break
        if "code" in output:
            failed += 1
            assert "Read-only" in output["msg"], done
            assert len(node.records()) == 2
            assert node.call("DEL", config) == {}
        assert _shared(node) == before
    assert failed > (6 if ALL else 2)
    assert number < OPERATIONS_MAX - 1
