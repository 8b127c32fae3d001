"""Containers that something else has started, attached by cnitool to /proc/PID/ns/net."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.e2e.node import NODE4, OUTSIDE4, addresses_in, pid_path
from tests.machine import Json
from tests.runtimes import image
from tests.runtimes.chains import CHAINS, Chain
from tests.runtimes.node import SECONDS, RuntimeNode, eventually
from tests.sockets import asks, serving

CAP_ARGS = json.dumps({"portMappings": [{"hostPort": 8080, "containerPort": 80}]})


def by_unshare(node: RuntimeNode) -> int:
    """Start a process with a network namespace of its own."""
    return node.process()


def by_runc(node: RuntimeNode) -> int:
    """Start a container by runc alone, whose network namespace is empty."""
    bundle = node.path("/run/bundle")
    image.unpack(bundle / "rootfs")
    node.command("runc", "spec", "--bundle", "/run/bundle")
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": ["/pause"]}
    (bundle / "config.json").write_text(json.dumps(spec))
    # Not by `run`: the container keeps its output open.
    node.start("runc", "run", "--detach", "--bundle", "/run/bundle", "c1", log="runc").wait(SECONDS)
    return int(json.loads(node.command("runc", "state", "c1"))["pid"])


STARTERS = [by_unshare, by_runc]


@pytest.fixture(params=[*CHAINS])
def chain(request: pytest.FixtureRequest) -> Chain:
    """A list that can be checked: of version 1.0.0."""
    found = CHAINS[request.param]
    config: Json = {**found.config, "cniVersion": "1.0.0"}
    return Chain(config, found.subnets, found.masquerades, found.bridge)


@pytest.mark.parametrize("start", STARTERS)
def test_by_pid(node: RuntimeNode, chain: Chain, start: Callable[[RuntimeNode], int]) -> None:
    """ADD, CHECK and DEL work on a container of any origin, which then has lo alone, as before."""
    outside = node.netns(node.outside())
    chain.configure(node)
    pid = start(node)
    before = node.state()
    name, netns = chain.config["name"], pid_path(pid)

    result = node.ok("add", name, netns, CAP_ARGS=CAP_ARGS)
    node.ok("check", name, netns, CAP_ARGS=CAP_ARGS)

    with serving(node.netns(netns), "tcp", 80) as (server, server6):
        address4, address6 = addresses_in(result)
        assert asks(node.netns(), server, address4, 80) != ""
        assert asks(node.netns(), server6, address6, 80) != ""
        assert asks(outside, server, NODE4, 8080) == OUTSIDE4
    assert node.reaches(netns, OUTSIDE4)
    node.command("ip", "address", "flush", "dev", "eth0", netns=netns)
    assert address4 in node.refused("check", name, netns, CAP_ARGS=CAP_ARGS)
    node.ok("del", name, netns, CAP_ARGS=CAP_ARGS)
    node.ok("del", name, netns, CAP_ARGS=CAP_ARGS)
    assert node.links(netns) == ["lo"]
    node.assert_as_before(before, chain.bridge)


@pytest.mark.parametrize("start", STARTERS)
def test_after_death(node: RuntimeNode, chain: Chain, start: Callable[[RuntimeNode], int]) -> None:
    """DEL is complete when the process has died, and may come twice."""
    node.outside()
    chain.configure(node)
    before = node.state()
    pid = start(node)
    name, netns = chain.config["name"], pid_path(pid)
    node.ok("add", name, netns, CAP_ARGS=CAP_ARGS)

    node.command("kill", "-KILL", str(pid))
    eventually(lambda: node.run("test", "-e", netns).returncode, "the process is gone")
    node.ok("del", name, netns, CAP_ARGS=CAP_ARGS)
    node.ok("del", name, netns, CAP_ARGS=CAP_ARGS)

    node.assert_as_before(before, chain.bridge)
