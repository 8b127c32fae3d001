"""The cluster before judges that nobody here wrote: Kubernetes' own tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import scope
from tests.kubernetes import dns
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.upstream import images, report, suite
from tests.kubernetes.world import run

SECONDS = 3000  # for a group of tests

pytestmark = pytest.mark.skipif(
    bool(images.missing()) and not scope.ALL, reason=images.missing() or "-"
)


@pytest.fixture(scope="module")
def routed(network: Cluster) -> Iterator[Cluster]:
    """A cluster whose API server reaches pods: tests have it fetch what pods have found out."""
    hops = []
    for name, ranges in network.ranges().items():
        four, six = network.nodes[name].addresses
        hops += [(one, six if ":" in one else four) for one in ranges]
    for pods, hop in hops:
        run("ip", "route", "add", pods, "via", hop)
    yield network
    for pods, hop in hops:
        run("ip", "route", "delete", pods, "via", hop)


@pytest.fixture(scope="module")
def judged(routed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The same with CoreDNS, and with the images that the tests ask for."""
    if images.missing():
        pytest.fail(images.missing())
    folder = tmp_path_factory.mktemp("upstream")
    archive = folder / "images.tar"
    images.write(archive, suite.image_names(folder))
    for node in routed.nodes.values():
        node.load(archive)
    dns.deploy(routed)
    return routed


@pytest.mark.timeout(SECONDS + 180)  # ginkgo ends by itself, and reports
@pytest.mark.parametrize("group", suite.GROUPS if scope.UPSTREAM else suite.SHORT)
def test_upstream(judged: Cluster, group: str) -> None:
    """All tests of the group pass, but those that say themselves why they do not run."""
    config = judged.plane.conf("super-admin")

    found = suite.run_group(group, config, Path(judged.logs, "upstream"), SECONDS)

    report.judge(found)
