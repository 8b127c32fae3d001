"""The cluster of kind's: made once in a run, before and after it has a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.image import build
from tests.kind.cluster import LOGS, MANIFEST, Cluster, World, required

HERE = Path(__file__).parent
TEST_SECONDS = 900  # the first test makes nodes, image and cluster; others end within seconds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow each test here more time."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Write the logs of all parts into one folder when a test fails."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    bare = getattr(item, "funcargs", {}).get("bare")
    if report.failed and bare is not None:
        folder = LOGS / item.name.replace("/", "-")
        bare.write_logs(folder)
        report.sections.append(("logs", f"of all parts: {folder}"))


@pytest.fixture(scope="session")
def archive() -> Path:
    """The image of `make image`, made of what is in dist."""
    if not (build.DIST / "agent").exists():
        pytest.fail("dist/agent is not there: run make agent")
    build.make(build.ARCHIVE)
    return build.ARCHIVE


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """A world with a docker daemon."""
    reason = required()
    if reason:
        pytest.fail(reason)
    shutil.rmtree(LOGS, ignore_errors=True)
    made = World()
    yield made
    made.close()


@pytest.fixture(scope="session")
def bare(world: World, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster without a network, whose nodes hold the image."""
    made = Cluster(world, tmp_path_factory.mktemp("kind"))
    made.load(archive)
    return made


@pytest.fixture(scope="session")
def cluster(bare: Cluster) -> Cluster:
    """The same with pycni, as the page has people bring it in, and its nodes Ready."""
    bare.kubectl("apply", "--filename", MANIFEST)
    try:
        bare.wait_for_nodes()
    except AssertionError:
        bare.write_logs(LOGS / "start")
        raise
    return bare
