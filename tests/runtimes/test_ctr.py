"""Containers run by `ctr run --cni`, which calls DEL after their end, with an empty CNI_NETNS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_interface, ip_network

import pytest

from tests.e2e.node import NODE4, NODE6, OUTSIDE4, OUTSIDE6
from tests.runtimes import image
from tests.runtimes.chains import CHAINS, Chain, with_plugin
from tests.runtimes.containerd import RUN, Containerd
from tests.runtimes.node import SECONDS, RuntimeNode, eventually

MAPPING = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
# ctr knows no capabilities, but what a list says itself reaches the plugin all the same.
FIXED_PORT = {"type": "portmap", "runtimeConfig": {"portMappings": [MAPPING]}}


class Container:
    """A container that `ctr run` waits for in the background."""

    def __init__(self, containerd: Containerd, name: str) -> None:
        self._containerd, self.name = containerd, name
        words = (*RUN, "--null-io", image.NAME, name, "httpd", "-f", "-h", "/www")
        self._process = containerd.start_ctr(*words, log=name)
        eventually(self._serves, f"{name} serves")

    def _serves(self) -> bool:
        log = self._containerd.node.path(f"/run/{self.name}.log")
        assert self._process.poll() is None, log.read_text()
        tasks = self._containerd.ok("task", "ls").splitlines()
        if not any(line.split()[0] == self.name and "RUNNING" in line for line in tasks):
            return False
        return bool(self.get("127.0.0.1/hello"))

    def execute(self, *words: str) -> str:
        """Return what a command prints inside, failed or not."""
        return self._containerd.execute(self.name, *words)

    def get(self, url: str) -> str:
        """Return what a web server answers the container, "" when none does."""
        return self.execute("timeout", "60", "wget", "-q", "-O", "-", f"http://{url}").strip()

    def address(self, version: int) -> str:
        """Return the container's address of a family."""
        words = ("ip", "-o", f"-{version}", "address", "show", "dev", "eth0", "scope", "global")
        return next(word for word in self.execute(*words).split() if "/" in word).partition("/")[0]

    def kill(self) -> None:
        """End the container; ctr then calls DEL."""
        self._containerd.ok("task", "kill", "--signal", "KILL", self.name)

    def wait(self) -> None:
        """Wait until DEL is over."""
        self._process.wait(SECONDS)


@contextmanager
def running(containerd: Containerd, *names: str) -> Iterator[list[Container]]:
    """Give containers, and end them in order."""
    containers = [Container(containerd, name) for name in names]
    yield containers
    for container in containers:
        container.kill()
    for container in containers:
        container.wait()


@pytest.fixture(params=[*CHAINS])
def chain(request: pytest.FixtureRequest) -> Chain:
    """A list with a fixed port."""
    found = CHAINS[request.param]
    return Chain(
        {**found.config, "plugins": [found.config["plugins"][0], FIXED_PORT]},
        found.subnets,
        found.masquerades,
        found.bridge,
    )


def test_foreground(node: RuntimeNode, chain: Chain) -> None:
    """A container reaches the world and is reached, and nothing of it stays."""
    outside = node.serve_outside()
    chain.configure(node)
    containerd = Containerd(node)
    before = node.state()

    with running(containerd, "c1") as (c1,):
        seen4, seen6 = c1.address(4), c1.address(6)
        from_node = [node.get(f"{c1.address(4)}/hello"), node.get(f"[{c1.address(6)}]/hello")]
        outward = [c1.get(f"{OUTSIDE4}/cgi-bin/who"), c1.get(f"[{OUTSIDE6}]/cgi-bin/who")]
        by_port = [
            node.get(f"{NODE4}:8080/cgi-bin/who", outside),
            node.get(f"[{NODE6}]:8080/cgi-bin/who", outside),
        ]

    assert from_node == ["hello", "hello"]
    assert outward == ([NODE4, NODE6] if chain.masquerades else [seen4, seen6])
    assert by_port == [OUTSIDE4, OUTSIDE6]
    assert node.get(f"{NODE4}:8080/hello", outside) == ""
    node.assert_as_before(before, chain.bridge)


def test_each_other(node: RuntimeNode) -> None:
    """Containers reach each other, and one is as before when the other has gone."""
    chain = CHAINS["bridge"]
    chain.configure(node)
    containerd = Containerd(node)
    before = node.state()

    with running(containerd, "c1") as (c1,):
        with running(containerd, "c2") as (c2,):
            seen = [
                c2.get(f"{c1.address(4)}/cgi-bin/who"),
                c2.get(f"[{c1.address(6)}]/cgi-bin/who"),
            ]
            addresses = [c2.address(4), c2.address(6)]
        after = node.get(f"{c1.address(4)}/hello")

    assert seen == addresses
    assert after == "hello"
    node.assert_as_before(before, chain.bridge)


@pytest.mark.both_edges
def test_at_once(node: RuntimeNode) -> None:
    """Containers that start and end at the same time have addresses of their own."""
    chain = CHAINS["bridge"]
    chain.configure(node)
    containerd = Containerd(node)
    before = node.state()
    words = (*RUN, image.NAME)

    processes = [
        containerd.start_ctr(*words, f"c{number}", "ip", "-o", "-4", "address", log=f"c{number}")
        for number in range(8)
    ]

    assert {process.wait(SECONDS) for process in processes} == {0}
    printed = [node.path(f"/run/c{number}.log").read_text() for number in range(8)]
    pool = ip_network(chain.subnets[0])
    words_with_prefix = [word for text in printed for word in text.split() if word.endswith("/24")]
    found = {word for word in words_with_prefix if ip_interface(word).network == pool}
    assert len(found) == len(processes), printed
    node.assert_as_before(before, chain.bridge)


def test_refused(node: RuntimeNode) -> None:
    """When a later plugin of the list fails, ctr says what it said, and nothing stays."""
    chain = with_plugin(CHAINS["bridge"], {"type": "tuning", "sysctl": {"net.none.such": "1"}})
    chain.configure(node)
    containerd = Containerd(node)
    before = node.state()

    done = containerd.ctr(*RUN, image.NAME, "c1", "true")

    assert done.returncode != 0
    assert "net.none.such" in done.stderr
    node.assert_as_before(before, chain.bridge)
