"""Packets between pods all the time while a test does something else: none may be lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Protocol

from tests.sockets import Server, asks, serving

PORT = 8081  # not that of other questions to the same pods
PAUSE_SECONDS = 0.02
LATE_SECONDS = 20.0  # what is lost never comes; what a busy or emulated machine delays does
LEAST = 20  # questions of each kind, or the time was too short to prove anything


class Pod(Protocol):
    """A pod of two families."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def netns(self) -> str:
        """Its network namespace, as this process finds it."""

    def address(self, version: int) -> str:
        """Return its address of a family."""


Question = tuple[Pod, Pod, Server, int]  # client, server pod, its socket, IP version


@contextmanager
def traffic(*pairs: tuple[Pod, Pod]) -> Iterator[None]:
    """Have the first pod of each pair ask the second by UDP, in both families, during the block.

    A datagram is sent once. Raises AssertionError where one had no answer.
    """
    asked, lost = Counter[str](), Counter[str]()
    failures: list[BaseException] = []
    end = threading.Event()

    def run(questions: list[Question]) -> None:
        try:
            for client, pod, server, version in cycle(questions):
                if end.wait(PAUSE_SECONDS):
                    return
                seen = asks(client.netns, server, pod.address(version), PORT, seconds=LATE_SECONDS)
                name = f"{client.name} to {pod.name} by IPv{version}"
                asked[name] += 1
                lost[name] += seen != client.address(version)
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            failures.append(error)

    with ExitStack() as stack:
        asked_ones = {pod.netns for _, pod in pairs}  # two sockets of one port would share it
        servers = {one: stack.enter_context(serving(one, "udp", PORT)) for one in asked_ones}
        questions = [
            (client, pod, server, version)
            for client, pod in pairs
            for server, version in zip(servers[pod.netns], (4, 6), strict=True)
        ]
        thread = threading.Thread(target=run, args=(questions,))
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
    if failures:
        raise failures[0]
    assert not +lost, f"without an answer: {+lost} of {asked}"
    assert min(asked.values()) >= LEAST, asked
