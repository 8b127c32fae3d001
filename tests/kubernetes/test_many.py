"""Many pods at once on one node: all become Ready, and nothing of them stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests import scope
from tests.kubernetes.agents import LIST
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.keeper import engine_of
from tests.kubernetes.leftovers import assert_as_before, found_on
from tests.kubernetes.node import CONFLISTS, Node
from tests.kubernetes.pods import Pods, pod, reaches
from tests.waits import wait_until

pytestmark = pytest.mark.rotating(2)  # by each way of connecting pods, on half of the days

AT_ONCE = 110 if scope.ALL else 60  # what a kubelet takes by default
BURST_SECONDS = 240.0  # on a busy machine of two cores; 20 on a free one
REWRITES = 5
MEMORY_MIB_MAX = 100.0  # of the engine, which has at most 16 workers


@pytest.mark.timeout(600)
def test_many_at_once(network: Cluster, pods: Pods) -> None:
    """They start together: no sandbox fails, no address twice; all go, and the node is as before.

    Meanwhile the test changes the list of plugins, and the agent writes it again.
    """
    node = network.first
    pods.start(pod("warm", node.name))  # makes what a network makes once
    pods.delete("warm")
    before = found_on(node)
    failed = network.events("FailedCreatePodSandBox", "FailedKillPod")

    bodies = [pod(f"many-{number}", node.name) for number in range(AT_ONCE)]
    with memory_of_engine(node) as memory:
        pods.create(*bodies)
        change_list(node)
        started = pods.ready([body["metadata"]["name"] for body in bodies], BURST_SECONDS)
    assert 0 < max(memory) < MEMORY_MIB_MAX

    every = [address for one in started for address in one.addresses]
    assert len(set(every)) == len(every) == 2 * AT_ONCE
    assert reaches(started[0].netns, started[-1].netns, started[-1].addresses[0])
    pods.delete(*(one.name for one in started), seconds=BURST_SECONDS)
    assert_as_before(node, before)
    assert network.events("FailedCreatePodSandBox", "FailedKillPod") == failed


def change_list(node: Node) -> None:
    """Put another text in place of the list several times, and wait for the agent's each time."""
    path = node.path(f"{CONFLISTS}/{LIST}")
    text = path.read_text()
    for number in range(1, REWRITES + 1):
        node.write_list(LIST, text + "\n" * number)
        wait_until(lambda: path.read_text() == text, "the agent leaves the list as it is")


@contextmanager
def memory_of_engine(node: Node) -> Iterator[list[float]]:
    """Give what all processes of the engine have during the block, MiB, twice a second."""
    found: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            found.extend(float(one.split()[0]) for one in [engine_of(node).get("memory")] if one)

    with ThreadPoolExecutor() as threads:
        looking = threads.submit(look)
        try:
            yield found
        finally:
            over.set()
        looking.result()
