"""Leftovers of pods that the runtime does not know: the agent asks the real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent import runtime
from agent.leftovers import SOCKETS
from tests import aging
from tests.kubernetes.agents import Agents, answers
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.leftovers import assert_as_before, found_on
from tests.kubernetes.node import BIN, CONFLISTS, Node
from tests.kubernetes.pods import Pods, pod, reaches
from tests.waits import wait_until

LOST = "lost"
_AGE = 3600.0  # seconds: more than all limits below which nothing is reclaimed


def attach_by_hand(node: Node) -> None:
    """Attach a container that no runtime knows, by the agent's list, and end its namespace."""
    found = json.loads(node.path(f"{CONFLISTS}/10-pycni.conflist").read_text())
    config = {"cniVersion": found["cniVersion"], "name": found["name"], **found["plugins"][0]}
    node.command("ip", "netns", "add", LOST)
    words = ["env", "CNI_COMMAND=ADD", f"CNI_CONTAINERID={LOST}", "CNI_IFNAME=eth0"]
    words += [f"CNI_NETNS=/run/netns/{LOST}", f"CNI_PATH={BIN}", f"{BIN}/{config['type']}"]
    node.command(*words, stdin=json.dumps(config))
    node.command("ip", "netns", "delete", LOST)


def let_time_pass(node: Node) -> None:
    """Make the records, the leases and what was noted of them older."""
    leases = node.path("/var/lib/cni/networks/pycni").iterdir()
    noted = node.path("/run/pycni").glob("reclaim.json")
    for path in (*_records(node), *leases, *noted):
        aging.age(path, _AGE)


def _records(node: Node) -> list[Path]:
    return [
        path
        for path in node.path("/run/pycni/attachments").iterdir()
        if f'"{LOST}"' in path.read_text()
    ]


@pytest.mark.timeout(300)
def test_what_the_runtime_does_not_know_goes(network: Cluster, agents: Agents, pods: Pods) -> None:
    """A lost pod's interface, lease and record go at the second look; a pod that runs stays."""
    node = network.first
    (alive,) = pods.start(pod("alive", node.name))
    before = found_on(node)
    attach_by_hand(node)
    names = [path.name for path in _records(node)]
    assert names

    let_time_pass(node)
    agents.restart(node)
    noted = node.path("/run/pycni/reclaim.json")
    wait_until(
        lambda: noted.exists() and any(name in noted.read_text() for name in names),
        "the agent notes nothing",
    )
    let_time_pass(node)
    agents.restart(node)

    wait_until(lambda: not _records(node), "the record of the lost pod stays")
    assert_as_before(node, before)
    agents.wait_ready(node)
    known = runtime.sandboxes(str(node.path(SOCKETS[0])))
    assert known
    assert LOST not in known
    status, text = answers(node, "/metrics")
    assert (status, 'pycni_agent_problems{part="leftovers"} 0.0' in text) == (200, True), text
    (other,) = pods.start(pod("other", "node2"))
    assert reaches(alive.netns, other.netns, other.address(4)) == alive.address(4)
