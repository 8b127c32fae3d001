"""Pods that start and end all the time while a test does something else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kubernetes.node import Node
from tests.kubernetes.pods import Pods, pod

AT_A_TIME = 10
MOST = 200  # pods, after which a block has them no more


@contextmanager
def churn(pods: Pods, node: Node, name: str = "churn") -> Iterator[list[str]]:
    """Create and delete pods while the block runs; give the names of those that stay.

    Raises what a creation or deletion has raised.
    """
    names = [f"{name}-{number}" for number in range(AT_A_TIME)]
    failures: list[BaseException] = []
    over = threading.Event()

    def come_and_go(one: str) -> None:
        pods.ready([one])
        pods.delete(one)

    def run() -> None:
        try:
            for one in names:
                pods.create(pod(one, node.name))
            for one in names[1::2]:
                come_and_go(one)
            for number in range(AT_A_TIME, MOST):
                if over.is_set():
                    return
                pods.create(pod(f"{name}-{number}", node.name))
                come_and_go(f"{name}-{number}")
            raise AssertionError(f"the block has not ended after {MOST} pods")
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield names[::2]
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]
