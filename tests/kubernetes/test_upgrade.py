"""The DaemonSet takes a cluster to another build and back while pods start and end."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.image import build
from tests import other_build
from tests.kubernetes.agent_pods import DAEMON_SETS, NAME, PODS, PROCESS, AgentPods
from tests.kubernetes.agents import Agents, answers, process_of
from tests.kubernetes.changes import TABLE, changes, made_by_agent
from tests.kubernetes.churn import churn
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.keeper import engine_of, kept_engine, socket_kept
from tests.kubernetes.node import BIN, Node
from tests.kubernetes.pods import Pod, Pods, pod, reaches
from tests.machine import Json
from tests.traffic import traffic
from tests.waits import wait_until

FAILURES = ("FailedCreatePodSandBox", "FailedKillPod")


@dataclass(frozen=True)
class Image:
    """An image of the agent, and what is in it."""

    name: str
    version: str
    plugins: str  # build of the plugins
    agent: str  # digest of the agent's build


def image_of(name: str, dist: Path) -> Image:
    """Return the image that is made of a directory."""
    (plugins,) = (path.name for path in (dist / "bin/.pycni").iterdir())
    version = plugins.rpartition("-")[0]
    return Image(name, version, plugins, (dist / "agent/build").read_text())


def other_dist() -> Path:
    """Return what the other image is made of: PYCNI_TEST_OTHER_DIST, or a version to come."""
    given = os.environ.get("PYCNI_TEST_OTHER_DIST")  # noqa: TID251 - dist/ of a release's own tree
    if given:
        return Path(given)
    dist = other_build.make().parent
    assert other_build.make_agent().parent == dist
    return dist


@pytest.fixture(scope="module")
def other_image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Give each node the image of another build, of plugins and agent; return that."""
    dist = other_dist()
    made = image_of("localhost/pycni:other", dist)
    archive: Path = tmp_path_factory.mktemp("other") / "pycni.tar"
    build.make(archive, name=made.name, dist=dist)
    for node in cluster.nodes.values():
        node.load(archive)
    return made


def has_plugins(node: Node, image: Image) -> bool:
    """Tell whether the plugins of an image are those of a node."""
    version = node.command(f"{BIN}/pycni", "version")
    return f".pycni/{image.plugins}" in version


def agent_of(node: Node) -> tuple[str, str]:
    """Return the version that the agent of a node tells, and the digest of its build."""
    found = re.search(r'pycni_build_info\{version="([^"]*)"\} 1', answers(node, "/metrics")[1])
    program = process_of(node, PROCESS)
    digest = node.path(f"/proc/{program}/root/opt/pycni/agent/build")
    return (found[1], digest.read_text()) if found and digest.exists() else ("", "")


def roll_out(network: Cluster, image: Image) -> int:
    """Have the DaemonSet run an image, and wait until each node has its build.

    Returns how many nodes were without an agent at a time, at most.
    """
    away = [0]
    network.plane.kubectl(
        *("--namespace", "kube-system", "set", "image"),
        *(f"daemonset/{NAME}", f"agent={image.name}"),
    )

    def is_rolled_out(daemon_set: Json) -> bool:
        status = daemon_set["status"]
        wanted = status["desiredNumberScheduled"]
        away.append(wanted - int(status.get("numberAvailable", 0)))
        return (
            status.get("observedGeneration") == daemon_set["metadata"]["generation"]
            and status.get("updatedNumberScheduled", 0) == wanted
            and away[-1] == 0
        )

    network.api.wait(
        DAEMON_SETS,
        lambda found: is_rolled_out(found[NAME]),
        f"all agents are of {image.name}",
    )
    for node in network.nodes.values():
        wait_until(
            lambda node=node: has_plugins(node, image),  # type: ignore[misc]
            f"{node.name} has no {image.plugins}",
        )
    return max(away)


def own_engine(node: Node) -> str:
    """Return the build of the engine that serves on a node, "" if there is none."""
    return engine_of(node).get("build", "")


def agent_pods(network: Cluster) -> dict[str, tuple[str, int]]:
    """Return image and restarts of each pod of the DaemonSet, by its node."""
    found = [one for one in network.api.list(PODS) if one["metadata"]["name"].startswith(NAME)]
    return {
        one["spec"]["nodeName"]: (
            one["spec"]["containers"][0]["image"],
            sum(status["restartCount"] for status in one["status"]["containerStatuses"]),
        )
        for one in found
        if "deletionTimestamp" not in one["metadata"]
    }


def upgrade(
    network: Cluster, pods: Pods, running: list[Pod], image: Image, name: str, folder: Path
) -> list[str]:
    """Roll an image out while pods start and end on two nodes; return those that stay.

    Packets between running pods arrive. What the agents have made in the kernel stays as it is, and
    nothing is written on the third node, where nothing is to change.
    """
    before = {name: made_by_agent(node) for name, node in network.nodes.items()}
    one, other = running
    with ExitStack() as stack:
        written = stack.enter_context(changes(network.third, folder))
        stack.enter_context(traffic((one, other), (other, one)))
        stay = stack.enter_context(churn(pods, network.first, name))
        stay += stack.enter_context(churn(pods, network.second, f"{name}-too"))
        away = roll_out(network, image)

    assert away == 1  # node after node
    assert agent_pods(network) == dict.fromkeys(network.nodes, (image.name, 0))
    told = {name: agent_of(node) for name, node in network.nodes.items()}
    assert told == dict.fromkeys(network.nodes, (image.version, image.agent))
    assert {name: made_by_agent(node) for name, node in network.nodes.items()} == before
    assert not written, "\n".join(written)
    for node, engine in zip(network.nodes.values(), (kept_engine, *[own_engine] * 2), strict=True):
        wait_until(
            lambda node=node, engine=engine: engine(node) == image.plugins,  # type: ignore[misc]
            f"the engine of {node.name} stays behind",
        )
    return stay


@pytest.mark.timeout(600)
def test_upgrade_and_back(
    network: Cluster, agents: Agents, pods: Pods, other_image: Image, tmp_path: Path
) -> None:
    """Pods that start and end meanwhile all do, without one failed call; those that run go on.

    On one node with these pods the engine is the agent's; on the other it is not, as with systemd's
    units. Both follow.
    """
    if not isinstance(agents, AgentPods):
        pytest.skip("agents are processes here, without an image: run make image")
    own = image_of(build.NAME, build.DIST)
    assert own.agent != other_image.agent
    running, other = pods.start(pod("running", "node1"), pod("other", "node2"))
    failed = network.events(*FAILURES)
    try:
        with socket_kept(network.first):
            newer = upgrade(network, pods, [running, other], other_image, "newer", tmp_path)
            older = upgrade(network, pods, [running, other], own, "older", tmp_path)
    finally:
        agents.start()
    agents.wait_ready()

    started = pods.ready([*newer, *older])

    assert network.events(*FAILURES) == failed
    for one in (running, *started):
        assert reaches(one.netns, other.netns, other.address(4)) == one.address(4)
    pods.delete(*newer, *older)


def test_what_an_agent_mends_is_heard(network: Cluster, agents: Agents, tmp_path: Path) -> None:
    """What hears nothing in an upgrade hears of rules and a route that come back."""
    if not isinstance(agents, AgentPods):
        pytest.skip("agents are processes here, without a name of their own: run make image")
    node = network.third
    (range4,) = [one for one in network.ranges()["node2"] if ":" not in one]
    before = made_by_agent(node)

    with changes(node, tmp_path) as heard:
        node.command("ip", "route", "delete", range4)
        node.command("nft", "delete", "table", "inet", TABLE)
        wait_until(
            lambda: (
                node.run("nft", "list", "table", "inet", TABLE).returncode == 0
                and node.command("ip", "route", "show", range4)
            ),
            "they do not come back",
        )

    assert "pycni-agent" in heard  # a transaction of this program
    assert any(range4 in one and not one.startswith("Deleted") for one in heard)
    assert made_by_agent(node) != before
