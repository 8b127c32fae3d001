"""The node that runtimes run on, its containerd, and its network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtimes.chains import CHAINS, Chain, Judge, Use
from tests.runtimes.containerd import Containerd
from tests.runtimes.cri import Kubelet
from tests.runtimes.node import RuntimeNode, eventually, runtime_node


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow each test here more time: runtimes start slowly, beside other tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture
def node(bin_dir: Path) -> Iterator[RuntimeNode]:
    """A node of the test's own."""
    with runtime_node(bin_dir) as made:
        yield made


@pytest.fixture(params=[*CHAINS])
def chain(request: pytest.FixtureRequest) -> Chain:
    """A list of a node, one after the other."""
    return CHAINS[request.param]


@pytest.fixture
def outside(node: RuntimeNode) -> str:
    """The namespace of a host outside, as seen from here."""
    return node.netns(node.serve_outside())


@pytest.fixture
def containerd(node: RuntimeNode, outside: str) -> Containerd:
    """The daemon, without any network so far."""
    return Containerd(node)


@pytest.fixture
def kubelet(node: RuntimeNode, containerd: Containerd) -> Iterator[Kubelet]:
    """A client of that daemon."""
    client = Kubelet(node)
    yield client
    client.close()


@pytest.fixture
def use(node: RuntimeNode, kubelet: Kubelet) -> Use:
    """A function that makes a list the node's, and returns one that judges what is left."""

    def configure(chain: Chain) -> Judge:
        chain.configure(node)
        eventually(kubelet.is_ready, "containerd has read the list")
        before = node.state()

        def judge() -> None:
            assert kubelet.pods() == []
            node.assert_as_before(before, chain.bridge)

        return judge

    return configure
