"""Pods made by containerd through the CRI, as the kubelet has it do."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.node import NODE4, NODE6, OUTSIDE4, OUTSIDE6
from tests.machine import Json
from tests.runtimes.chains import CHAINS, Chain, Use, with_plugin
from tests.runtimes.containerd import Containerd
from tests.runtimes.cri import Kubelet, Port, RefusedError
from tests.runtimes.node import RuntimeNode, eventually
from tests.sockets import asks, serving


def test_readiness(node: RuntimeNode, kubelet: Kubelet) -> None:
    """The node is not ready, and refuses pods, until the list appears."""
    chain = CHAINS["bridge"]
    before = node.state()
    assert not kubelet.is_ready()
    with pytest.raises(RefusedError, match="cni"):
        kubelet.run("early")

    chain.configure(node)
    eventually(kubelet.is_ready, "containerd has read the list")
    kubelet.end(*kubelet.pods())  # DEL for what was never added
    pod = kubelet.run("late")

    assert len(kubelet.addresses(pod)) == 2
    kubelet.end(pod)
    node.assert_as_before(before, chain.bridge)


@pytest.mark.both_edges
def test_pods(node: RuntimeNode, kubelet: Kubelet, use: Use, chain: Chain) -> None:
    """Pods have loopback and both families, reach each other, the world, and are reached."""
    judge = use(chain)
    pods = [kubelet.run("a"), kubelet.run("b")]
    server = kubelet.start(pods[0], "httpd", "-f", "-h", "/www")
    client = kubelet.start(pods[1], "/pause")

    def get(container: str, url: str) -> str:
        words = ("timeout", "60", "wget", "-q", "-O", "-", f"http://{url}")
        return kubelet.execute(container, *words).strip()

    (a4, a6), (b4, b6) = (kubelet.addresses(pod) for pod in pods)
    eventually(lambda: get(server, "127.0.0.1/hello"), "the pod serves")
    assert get(client, f"{a4}/cgi-bin/who") == b4
    assert get(client, f"[{a6}]/cgi-bin/who") == b6
    assert [node.get(f"{a4}/hello"), node.get(f"[{a6}]/hello")] == ["hello", "hello"]
    world = [NODE4, NODE6] if chain.masquerades else [b4, b6]
    assert [
        get(client, f"{OUTSIDE4}/cgi-bin/who"),
        get(client, f"[{OUTSIDE6}]/cgi-bin/who"),
    ] == world
    kubelet.end(*pods)
    judge()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_host_ports(
    node: RuntimeNode, kubelet: Kubelet, use: Use, outside: str, chain: Chain, protocol: str
) -> None:
    """Host ports lead to the pod from everywhere, itself included, with hostIP only by that."""
    judge = use(chain)
    name = protocol.upper()
    pod = kubelet.run("a", Port(8080, 80, name), Port(8081, 80, name, NODE4))
    other = node.netns(kubelet.netns(kubelet.run("b")))
    own = node.netns(kubelet.netns(pod))
    address = kubelet.addresses(pod)[0]
    node.command("ip", "address", "add", "192.0.2.9/24", "dev", "up0")

    with serving(own, protocol, 80) as (server, server6):
        assert asks(outside, server, NODE4, 8080) == OUTSIDE4
        assert asks(outside, server6, NODE6, 8080) == OUTSIDE6
        assert asks(other, server, NODE4, 8080) != ""
        assert asks(node.netns(), server, NODE4, 8080) != ""
        assert asks(node.netns(), server, "127.0.0.1", 8080) != ""
        assert asks(own, server, NODE4, 8080) not in ("", address)  # hairpin
        assert asks(outside, server, NODE4, 8081) == OUTSIDE4
        assert asks(outside, server, "192.0.2.9", 8080) == OUTSIDE4
        assert asks(outside, server, "192.0.2.9", 8081) == ""
        kubelet.stop(pod)
        assert asks(outside, server, NODE4, 8080) == ""

    node.command("ip", "address", "delete", "192.0.2.9/24", "dev", "up0")
    kubelet.end(*kubelet.pods())
    judge()


def test_many_at_once(node: RuntimeNode, kubelet: Kubelet, use: Use, chain: Chain) -> None:
    """Twenty pods are set up, and torn down, at the same time."""
    judge = use(chain)
    with ThreadPoolExecutor(20) as pool:
        pods = list(
            pool.map(
                lambda n: kubelet.run(f"p{n}", Port(7000 + n), Port(7000 + n, 53, "UDP")), range(20)
            )
        )
        found = [address for pod in pods for address in kubelet.addresses(pod)]
        list(pool.map(kubelet.end, pods))

    assert len(set(found)) == 40
    judge()


@pytest.mark.both_edges
def test_containerd_restarted(
    node: RuntimeNode, containerd: Containerd, kubelet: Kubelet, use: Use, outside: str
) -> None:
    """Pods keep their network while containerd is away, and are removed by the next one."""
    judge = use(CHAINS["bridge"])
    pod = kubelet.run("a", Port(8080))
    addresses = kubelet.addresses(pod)

    with serving(node.netns(kubelet.netns(pod)), "tcp", 80) as (server, _):
        containerd.stop()
        assert asks(outside, server, NODE4, 8080) == OUTSIDE4
        containerd.start()
        assert asks(outside, server, NODE4, 8080) == OUTSIDE4

    assert kubelet.addresses(pod) == addresses
    other = kubelet.run("b")
    assert not set(kubelet.addresses(other)) & set(addresses)
    kubelet.end(pod, other)
    judge()


def test_namespace_lost(node: RuntimeNode, kubelet: Kubelet, use: Use, chain: Chain) -> None:
    """A pod whose namespace has gone, as after a reboot, is removed, and nothing of it stays."""
    judge = use(chain)
    pod = kubelet.run("a", Port(8080))
    path = kubelet.netns(pod)
    node.command("kill", "-KILL", str(kubelet.pid(pod)))
    eventually(lambda: not kubelet.is_running(pod), "containerd sees the pod's end")
    node.command("umount", "--lazy", path)
    node.command("rm", path)

    kubelet.end(pod)

    judge()


def test_repeated(node: RuntimeNode, kubelet: Kubelet, use: Use, chain: Chain) -> None:
    """DEL comes again and again, also when another pod has the address and the port by then."""
    judge = use(chain)
    pod = kubelet.run("a", Port(8080))
    kubelet.stop(pod)
    other = kubelet.run("b", Port(8080))
    with_other = node.state()

    kubelet.stop(pod)
    kubelet.remove(pod)
    kubelet.remove(pod)

    node.assert_as_before(with_other)
    kubelet.end(other)
    judge()


FAILING = """\
#!{python}
import json, os, pathlib, sys

config = json.load(sys.stdin)
command = os.environ["CNI_COMMAND"]
if pathlib.Path(f"/run/fail-{{command}}").exists():
    print(json.dumps({{"cniVersion": config["cniVersion"], "code": 100, "msg": "no luck today"}}))
    raise SystemExit(1)
if command == "ADD":
    print(json.dumps(config["prevResult"]))
"""


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_failing_plugin(
    node: RuntimeNode, kubelet: Kubelet, use: Use, chain: Chain, command: str
) -> None:
    """When a plugin behind ours fails, its words arrive, and nothing stays once it works again."""
    plugin: Json = {"type": "unlucky"}
    path = node.path("/opt/cni/bin/unlucky")
    path.write_text(FAILING.format(python=sys.executable))
    path.chmod(0o755)
    judge = use(with_plugin(chain, plugin))
    trigger = node.path(f"/run/fail-{command}")

    if command == "ADD":
        trigger.touch()
        with pytest.raises(RefusedError, match="no luck today"):
            kubelet.run("a", Port(8080))
        trigger.unlink()
    else:
        pod = kubelet.run("a", Port(8080))
        trigger.touch()
        with pytest.raises(RefusedError, match="no luck today"):
            kubelet.stop(pod)
        trigger.unlink()

    kubelet.end(*kubelet.pods())
    judge()
