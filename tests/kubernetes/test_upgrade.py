"""Another version of plugins and engine takes over while pods start and end, and gives back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.agents import Agents
from tests.kubernetes.churn import churn
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.leftovers import assert_as_before, found_on
from tests.kubernetes.node import BIN
from tests.kubernetes.pods import Pods, pod, reaches
from tests.machine import DIST, REFERENCE_BIN

pytestmark = pytest.mark.rotating(2)  # by each way of connecting pods, on half of the days


@pytest.fixture(scope="module")
def next_dist(other_dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version to come, with the loopback plugin that containerd 1 cannot do without."""
    if not (REFERENCE_BIN / "loopback").exists():
        pytest.skip(f"{REFERENCE_BIN} is not there: run deploy/prerequisites.sh --reference")
    folder = tmp_path_factory.mktemp("next") / "bin"
    shutil.copytree(other_dist, folder, symlinks=True)
    shutil.copy2(REFERENCE_BIN / "loopback", folder)
    return folder


@pytest.fixture
def processes(network: Cluster, agents: Agents) -> Iterator[Agents]:
    """Agents as processes, in place of others: these can be told what to install."""
    made = Agents(network, agents.way)
    agents.stop()
    made.start()
    made.wait_ready()
    yield made
    made.stop()
    agents.start()
    agents.wait_ready()


@pytest.mark.timeout(900)
def test_there_and_back(network: Cluster, processes: Agents, pods: Pods, next_dist: Path) -> None:
    """No pod fails, those of before are deleted by the version that is there then."""
    node = network.first
    pods.start(pod("warm", node.name))
    pods.delete("warm")
    before = found_on(node)
    failed = network.events("FailedCreatePodSandBox", "FailedKillPod")
    (old,) = pods.start(pod("old", node.name))
    builds = set()

    for dist in (next_dist, DIST):
        processes.dist = dist
        with churn(pods, node, name=f"churn-{dist.parent.name}") as stay:
            processes.restart(node)
            processes.wait_ready(node)
        first, *_ = pods.ready(stay)
        assert reaches(first.netns, old.netns, old.addresses[0])
        pods.delete(*stay)
        builds.add(node.path(f"{BIN}/bridge").read_bytes())

    assert len(builds) == 2, "the plugins were not replaced"
    pods.delete("old")
    assert_as_before(node, before)
    assert network.events("FailedCreatePodSandBox", "FailedKillPod") == failed
