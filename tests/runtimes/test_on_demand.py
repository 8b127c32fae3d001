"""Runtimes whose first container leaves an engine behind, which serves those that follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.upgrades import install
from tests.machine import DIST
from tests.runtimes import image
from tests.runtimes.chains import CHAINS
from tests.runtimes.containerd import RUN, Containerd
from tests.runtimes.cri import Kubelet
from tests.runtimes.node import BIN, RuntimeNode, eventually, runtime_node
from tests.runtimes.podman import Podman


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RuntimeNode]:
    """A node whose /opt/cni/bin is as `make install ENGINE=on-demand` leaves it."""
    install(DIST, tmp_path / "bin", "on-demand")
    with runtime_node(tmp_path / "bin") as made:
        made.serve_outside()
        yield made


def _status(node: RuntimeNode) -> dict[str, str]:
    done = node.run(f"{BIN}/pycni", "engine", "--status")
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def _requests(node: RuntimeNode) -> int:
    return int(_status(node).get("requests", "-1"))


@contextmanager
def served_by_the_engine(node: RuntimeNode) -> Iterator[None]:
    """Have launchers nothing that they could start, and require that there was an engine."""
    eventually(lambda: _requests(node) >= 0, "a call has left an engine behind")
    before = _status(node)
    (program,) = node.path(f"{BIN}/.pycni").glob("*/pycni")
    away = program.rename(program.with_name("away"))
    yield
    away.rename(program)
    eventually(lambda: _requests(node) > int(before["requests"]), "the engine has served")
    assert _status(node)["pid"] == before["pid"]
    assert before["groups"].endswith("/pycni-engine")


def test_podman(node: RuntimeNode) -> None:
    """The first container's end does not wait for the engine that it has left behind."""
    podman = Podman(node)
    podman.network("net1", "10.80.0.0/24")
    before = node.state("cni-podman1")

    podman.ok("run", "--rm", "--network=net1", image.NAME, "true")
    with served_by_the_engine(node):
        podman.start("c1", "--network=net1", "--publish=8080:80")
        assert node.addresses(podman.netns("c1"), "eth0")[0].startswith("10.80.0.")
        podman.remove("c1")

    node.assert_as_before(before, "cni-podman1")


def test_ctr(node: RuntimeNode) -> None:
    """Ctr calls the plugins itself, and ends, while the engine stays."""
    chain = CHAINS["bridge"]
    chain.configure(node)
    containerd = Containerd(node)
    before = node.state()

    containerd.ok(*RUN, image.NAME, "c0", "true")
    with served_by_the_engine(node):
        shown = containerd.ok(*RUN, image.NAME, "c1", "ip", "-o", "-4", "address")

    assert chain.subnets[0].rpartition(".")[0] in shown
    node.assert_as_before(before, chain.bridge)


def test_containerd(node: RuntimeNode) -> None:
    """The daemon calls loopback and the list at once; a restart of the daemon leaves the engine."""
    chain = CHAINS["bridge"]
    chain.configure(node)
    containerd = Containerd(node)
    kubelet = Kubelet(node)
    eventually(kubelet.is_ready, "containerd has read the list")
    before = node.state()

    first = kubelet.run("p0")
    kubelet.end(first)
    containerd.stop()
    containerd.start()
    eventually(kubelet.is_ready, "containerd has read the list")
    with served_by_the_engine(node):
        second = kubelet.run("p1")
        kubelet.end(second)

    kubelet.close()
    node.assert_as_before(before, chain.bridge)
