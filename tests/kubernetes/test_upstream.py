"""The cluster before judges that nobody here wrote: Kubernetes' own tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import scope
from tests.kubernetes import dns
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.upstream import images, report, suite

SECONDS = 1500  # for a group of tests

pytestmark = pytest.mark.skipif(
    bool(images.missing()) and not scope.ALL, reason=images.missing() or "-"
)


@pytest.fixture(scope="session")
def judged(network: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A cluster with CoreDNS, and with the images that the tests ask for."""
    if images.missing():
        pytest.fail(images.missing())
    folder = tmp_path_factory.mktemp("upstream")
    archive = folder / "images.tar"
    images.write(archive, suite.image_names(folder))
    for node in network.nodes.values():
        node.load(archive)
    dns.deploy(network)
    return network


@pytest.mark.timeout(SECONDS + 180)  # ginkgo ends by itself, and reports
@pytest.mark.parametrize("group", suite.GROUPS if scope.ALL else suite.SHORT)
def test_upstream(judged: Cluster, group: str) -> None:
    """All tests of the group pass, but those that say themselves why they do not run."""
    config = judged.plane.conf("super-admin")

    found = suite.run_group(group, config, Path(judged.logs, "upstream"), SECONDS)

    report.judge(found)
