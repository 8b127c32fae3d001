"""The DaemonSet takes a cluster to another build and back while pods start and end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cni_common.spec.names import VERSION
from deploy.image import build
from tests import other_build
from tests.kubernetes.agent_pods import DAEMON_SETS, NAME, AgentPods
from tests.kubernetes.agents import Agents
from tests.kubernetes.churn import churn
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.node import BIN, Node
from tests.kubernetes.pods import Pods, pod, reaches
from tests.waits import wait_until

FAILURES = ("FailedCreatePodSandBox", "FailedKillPod")
OTHER_IMAGE = f"localhost/pycni:{other_build.OTHER_VERSION}"


@pytest.fixture(scope="module")
def other_image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give each node the image of another build; return its name."""
    folder = other_build.make().parent
    shutil.copytree(build.DIST / "agent", folder / "agent", dirs_exist_ok=True)
    archive: Path = tmp_path_factory.mktemp("other") / "pycni.tar"
    build.make(archive, name=OTHER_IMAGE, dist=folder)
    for node in cluster.nodes.values():
        node.load(archive)
    return OTHER_IMAGE


def installed(node: Node) -> str:
    """Return the version of the plugins on a node."""
    return node.command(f"{BIN}/pycni", "version").split()[1]


def roll_out(network: Cluster, image: str, version: str) -> None:
    """Have the DaemonSet run an image, and wait until each node has its build."""
    network.plane.kubectl(
        *("--namespace", "kube-system", "set", "image", f"daemonset/{NAME}", f"agent={image}")
    )
    network.api.wait(
        DAEMON_SETS,
        lambda found: _is_rolled_out(found[NAME]),
        f"all agents are of {image}",
    )
    for node in network.nodes.values():
        wait_until(lambda node=node: installed(node) == version, f"{node.name} has {version}")  # type: ignore[misc]


def _is_rolled_out(daemon_set: dict[str, dict[str, int]]) -> bool:
    status = daemon_set["status"]
    wanted = status["desiredNumberScheduled"]
    return (
        status.get("observedGeneration") == daemon_set["metadata"]["generation"]
        and status.get("updatedNumberScheduled", 0) == wanted
        and status.get("numberAvailable", 0) == wanted
    )


@pytest.mark.timeout(600)
def test_upgrade_and_back(network: Cluster, agents: Agents, pods: Pods, other_image: str) -> None:
    """Pods that start and end meanwhile all do, without one failed call; those that run go on."""
    if not isinstance(agents, AgentPods):
        pytest.skip("agents are processes here, without an image: run make image")
    running, other = pods.start(pod("running", "node1"), pod("other", "node2"))
    failed = network.events(*FAILURES)
    try:
        with churn(pods, network.first, "newer") as newer:
            roll_out(network, other_image, other_build.OTHER_VERSION)
        with churn(pods, network.first, "older") as older:
            roll_out(network, build.NAME, VERSION)
    finally:
        agents.start()
    agents.wait_ready()

    started = pods.ready([*newer, *older])

    assert network.events(*FAILURES) == failed
    for one in (running, *started):
        assert reaches(one.netns, other.netns, other.address(4)) == one.address(4)
    pods.delete(*newer, *older)
