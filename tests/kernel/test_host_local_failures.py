"""host-local when the disk fails and processes die at any moment."""

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugins.host_local import store, transaction
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
    """Return a Store whose disk operation number `fail_at` fails, and the list of operations."""
    done: list[str] = []

    class FailingStore(store.Store):
        def _disk(self, call: Any, *args: Any, **kwargs: Any) -> Any:
            done.append(call.__name__)
            if len(done) == fail_at:
                if call is os.close:
                    os.close(*args)
                failure()
            return call(*args, **kwargs)

    return FailingStore, done


def _raise(error: BaseException) -> Callable[[], object]:
    def failure() -> object:
        raise error

    return failure


def _operations(node: Node, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many disk operations an ADD of two families needs."""
    failing, done = _failing_store(0, lambda: None)
    monkeypatch.setattr(transaction, "Store", failing)
    node.add(node.config(NET4, NET6), "counted")
    assert len(done) > 20
    return len(done)


def _shared(node: Node) -> tuple[dict[str, str], list[str]]:
    return node.leases(), node.records()


def test_h8_h9_any_failure_of_the_disk_is_taken_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever disk operation of an ADD fails, nothing is left but what was there before."""
    config = node.config(NET4, NET6)
    failed = 0
    for number in range(1, _operations(node, monkeypatch) + 1):
        before = _shared(node)
        failing, _done = _failing_store(number, _raise(OSError(errno.ENOSPC, "No space left")))
        monkeypatch.setattr(transaction, "Store", failing)

        output = node.call("ADD", config, f"c{number}")

        monkeypatch.setattr(transaction, "Store", store.Store)
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
    assert failed > 12


def test_terminated_at_any_moment(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM at any disk operation leaves nothing, or what the next ADD removes."""
    config = node.config(NET4, NET6)
    for number in range(1, _operations(node, monkeypatch) + 1):
        before = _shared(node)
        failing, done = _failing_store(number, _raise(_Killed()))
        monkeypatch.setattr(transaction, "Store", failing)

        with pytest.raises(_Killed):
            node.call("ADD", config, f"c{number}")

        monkeypatch.setattr(transaction, "Store", store.Store)
        assert _shared(node) == before or done[number - 1] == "unlink"
        node.add(config, "next")
        node.call("DEL", config, "next")
        assert _shared(node) == before


def _add_and_die(root: Path, config: dict[str, Any], number: int) -> None:
    failing, _done = _failing_store(number, lambda: os._exit(9))
    transaction.Store = failing  # type: ignore[attr-defined]
    Node(root).call("ADD", config, f"c{number}")


def test_h8_killed_at_any_moment(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """After SIGKILL at any disk operation no lease is torn, others get theirs, and DEL frees."""
    config = node.config(NET4, NET6)
    count = _operations(node, monkeypatch)
    monkeypatch.setattr(transaction, "Store", store.Store)
    before = _shared(node)
    for number in range(1, count + 1):
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_add_and_die, args=(node.root, config, number))
        process.start()
        process.join()
        assert process.exitcode == 9

        torn = {k: v for k, v in node.leases().items() if k[0] != "." and "\r\neth0" not in v}
        assert torn == {}
        assert len(set(node.add(config, "other")) - set(before[0])) == 2
        assert ".pycni-new" not in node.leases()
        for containerid in ("other", f"c{number}"):
            assert node.call("DEL", config, containerid) == {}
        assert _shared(node) == before


def test_failed_delete_can_be_repeated(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever disk operation of a DEL fails, it is told, and the next DEL frees the rest."""
    config = node.config(NET4, NET6)
    node.add(config, "other")
    before = _shared(node)
    for number in range(1, 30):
        node.add(config)
        failing, done = _failing_store(number, _raise(OSError(errno.EROFS, "Read-only")))
        monkeypatch.setattr(transaction, "Store", failing)

        output = node.call("DEL", config)

        monkeypatch.setattr(transaction, "Store", store.Store)
        if number > len(done):
            break
        assert "Read-only" in output["msg"], done
        assert len(node.records()) == 2
        assert node.call("DEL", config) == {}
        assert _shared(node) == before
    assert 10 < number < 29
