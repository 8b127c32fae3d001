"""Containers run by `ctr run --cni`, which calls DEL with an empty CNI_NETNS."""

from tests.e2e.node import network
from tests.runtimes import image
from tests.runtimes.containerd import Containerd
from tests.runtimes.node import RuntimeNode


def test_foreground(node: RuntimeNode) -> None:
    """A container in the foreground has a network, and leaves nothing of it."""
    node.configure(network("1.0.0", ["10.77.0.0/24", "fd00:77::/64"]))
    containerd = Containerd(node)

    printed = containerd.ok("run", "--rm", "--cni", image.NAME, "c1", "ip", "address")

    assert "inet 10.77.0.2/24" in printed
    assert node.traces("br0") == {}
