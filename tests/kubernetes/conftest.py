"""The cluster: made once for each combination, and what a test needs of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes import agent_pods, combination, control_plane, dns, node
from tests.kubernetes.agent_pods import AgentPods
from tests.kubernetes.agents import WAYS, Agents, chosen
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.pods import Pods
from tests.kubernetes.world import LOGS, World
from tests.runtimes import image

HERE = Path(__file__).parent
TEST_SECONDS = 300  # a cluster under load on a busy machine; a test ends much earlier


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow each test here more time: the first of a combination makes its cluster.

    Tests without agents come last. They take the API server away, and for minutes thereafter
    kubelets and controllers wait before they ask it again: agents would start late.
    """
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))
    items.sort(key=lambda item: HERE in item.path.parents and not _needs_agents(item))


def _needs_agents(item: pytest.Item) -> bool:
    return "agents" in getattr(item, "fixturenames", ())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run everything on the combination of the day, in the long form on both."""
    if "cluster" in metafunc.fixturenames:
        metafunc.parametrize("cluster", combination.chosen(), indirect=True, scope="session")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Write the state of the cluster beside the logs of its parts when a test fails."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.when != "teardown" and report.failed and cluster is not None:
        # A set-up that fails is one for many tests.
        name = item.name if report.when == "call" else "set-up"
        folder = cluster.logs / name.replace("/", "-")
        if not folder.exists():
            cluster.write_state(folder)
        report.sections.append(("logs", f"of all parts: {cluster.logs}; state: {folder}"))


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """The world of this run."""
    reason = control_plane.required() or node.missing()
    if reason:
        pytest.fail(reason)  # a set-up that is not there must not look like a success
    shutil.rmtree(LOGS, ignore_errors=True)
    made = World()
    yield made
    made.close()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The archives of images that each node has."""
    archive = tmp_path_factory.mktemp("images") / "test.tar"
    image.write(archive)
    return [archive]


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, world: World, images: list[Path]) -> Iterator[Cluster]:
    """A cluster of three nodes; its nodes have plugins, and no network before a test gives one."""
    made = Cluster(world, combination.COMBINATIONS[request.param], images)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session", params=chosen())
def agents(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Agents]:
    """The agents of the cluster, for each way of connecting pods."""
    made = (Agents if agent_pods.missing() else AgentPods)(cluster, WAYS[request.param])
    made.start()
    made.wait_ready()
    cluster.wait_ready()
    yield made
    dns.remove(cluster)  # with the list that has set the pods up: what stays would be of two kinds
    made.stop()
    made.uninstall()


@pytest.fixture(scope="session")
def network(cluster: Cluster, agents: Agents) -> Cluster:
    """The cluster, with a network by the agents."""
    return cluster


@pytest.fixture
def pods(cluster: Cluster) -> Iterator[Pods]:
    """The pods of a test, which go with it."""
    made = Pods(cluster.api, cluster.nodes)
    yield made
    made.clear()
