"""Pods that start and end all the time while a test does something else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kubernetes.node import Node
from tests.kubernetes.pods import Pods, pod

AT_A_TIME = 10


@contextmanager
def churn(pods: Pods, node: Node, name: str = "churn") -> Iterator[list[str]]:
    """Create pods while the block runs, and delete half of them; give the names that stay.

    Raises what a creation or deletion has raised.
    """
    names = [f"{name}-{number}" for number in range(AT_A_TIME)]
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for one in names:
                pods.create(pod(one, node.name))
            for one in names[1::2]:
                pods.ready([one])
                pods.delete(one)
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield names[::2]
    finally:
        thread.join()
    if failures:
        raise failures[0]
