"""What a node needs before its first pods, also after a boot, and what is said until then."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import configuration
from tests.agent.host import LIST, OTHER, RANGES, AgentHost, member
from tests.api_server import ApiServer
from tests.api_server import node as node_of
from tests.machine import Json
from tests.resident import visiting
from tests.waits import wait_until

pytestmark = pytest.mark.timeout(300)
OWN = member("a", 1, *RANGES)
READY = str(configuration.Choice().indicator)


@pytest.fixture
def server(host: AgentHost) -> Iterator[ApiServer]:
    """An API server on the node that knows another Node alone."""
    with visiting(host.node.netns()):
        made = ApiServer([node_of(0, images=1)])
    host.api_server = f"http://127.0.0.1:{made.port}"
    yield made
    made.close()


def registered(host: AgentHost) -> Json:
    """Return the Node of a host, as its kubelet and the controller manager make it."""
    return {
        "metadata": {"name": host.name, "uid": f"uid-{host.name}"},
        "spec": {"podCIDRs": [*RANGES]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": one} for one in host.addresses],
            "nodeInfo": {"containerRuntimeVersion": "containerd://2.4.2"},
        },
    }


def test_without_its_node(host: AgentHost, server: ApiServer, tmp_path: Path) -> None:
    """An agent whose Node is not there says so everywhere, and goes on once the Node comes."""
    words = "there is no Node 'a' (yet): is NODE_NAME the Node's own name (spec.nodeName)?"
    host.start("--kubeconfig", server.kubeconfig(tmp_path))

    wait_until(lambda: words in host.get("/readyz")[1], "/readyz does not say it")
    wait_until(lambda: server.taken, "no Event")

    assert host.get("/readyz")[0] == 503
    assert not host.path(LIST).exists()
    assert host.metric('pycni_agent_problems{part="nodes"}') == 1
    assert [one["message"] for one in host.log() if one.get("part") == "nodes"] == [words]
    ((_, event),) = server.taken
    assert (event["reason"], event["message"]) == ("NodesUnknown", words)
    assert event["involvedObject"]["name"] == "a"

    server.tell("ADDED", registered(host))

    host.wait_ready()
    assert host.path(LIST).exists()
    wait_until(lambda: not host.metric('pycni_agent_problems{part="nodes"}'), "it stays wrong")


@contextmanager
def refusing_nft(host: AgentHost) -> Iterator[None]:
    """Have the kernel refuse each change of the agent's table, which belongs to another program."""
    words = host.node.entered("nft", "--interactive")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as owner:
        assert owner.stdin
        owner.stdin.write(b"add table inet pycni-agent { flags owner; }\n")
        owner.stdin.flush()
        listing = ("nft", "list", "tables")
        wait_until(lambda: "pycni-agent" in host.node.command(*listing), "there is no such table")
        yield
        owner.stdin.close()


@contextmanager
def refusing_sysctls(host: AgentHost) -> Iterator[None]:
    """Have the node's sysctls be read-only, with forwarding off."""
    off = "echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding"
    host.node.command("sh", "-ec", f"{off}; mount --bind -o ro /proc/sys /proc/sys")
    yield
    host.node.command("umount", "/proc/sys")


REFUSALS = {
    "packets of pods are not masqueraded": refusing_nft,
    "the node does not forward packets of pods": refusing_sysctls,
}


@pytest.mark.parametrize("words", REFUSALS)
def test_pods_that_would_not_get_out(host: AgentHost, words: str) -> None:
    """A new node gets no list while the kernel refuses what its pods need, and one after."""
    host.remember(OWN, OTHER)
    with REFUSALS[words](host):
        host.start()

        wait_until(lambda: words in host.get("/readyz")[1], "/readyz does not say it")

        assert host.get("/readyz")[0] == 503
        assert not host.path(LIST).exists()
        assert host.metric('pycni_agent_problems{part="configuration"}') == 1
        first = "new pods wait until this is mended"
        assert any(one["message"].startswith(f"{first}: {words}") for one in host.log())

    host.wait_ready()
    assert "masquerade" in host.node.command("nft", "list", "table", "inet", "pycni-agent")
    assert host.node.command("cat", "/proc/sys/net/ipv6/conf/all/forwarding") == "1\n"


def test_a_node_that_has_worked(host: AgentHost) -> None:
    """It keeps its list, which follows the cluster, although masquerading fails: that is said."""
    host.remember(OWN, OTHER)
    host.start()
    host.wait_ready()
    host.stop()
    mtu = host.list()["plugins"][0]["mtu"]
    host.node.command("nft", "delete", "table", "inet", "pycni-agent")
    host.node.command("ip", "link", "set", "uplink", "mtu", "1440")

    with refusing_nft(host):
        host.start()
        host.wait_ready()

        problems = 'pycni_agent_problems{part="network"}'
        wait_until(lambda: host.metric(problems) == 1, "nothing is said of masquerading")
        assert host.list()["plugins"][0]["mtu"] == mtu - 60
        host.path(LIST).unlink()
        wait_until(host.path(LIST).exists, "the list does not come back")


def boot(host: AgentHost) -> None:
    """Take away what no boot leaves: processes, files below /run, and what the agent has made."""
    host.stop()
    host.node.command("kill", "-KILL", str(host.engine()))
    host.node.command("sh", "-ec", "rm -r /run/pycni; nft delete table inet pycni-agent")


def test_after_a_boot(host: AgentHost) -> None:
    """The list on the disk starts no pod before the network is there again; DEL works meanwhile."""
    host.remember(OWN, OTHER)
    host.start()
    host.wait_ready()
    for name in ("c1", "c2"):
        host.node.container(name)
    assert host.call("ADD", "c1").returncode == 0
    boot(host)

    with refusing_nft(host):
        early = host.call("ADD", "c2")
        assert host.call("DEL", "c1").returncode == 0
        host.start()
        wait_until(lambda: "new pods wait" in host.get("/readyz")[1], "/readyz does not say it")
        refused, status = host.call("ADD", "c2"), host.call("STATUS", "")

    for done, code in ((early, 11), (refused, 11), (status, 50)):
        found = json.loads(done.stdout)
        assert found["code"] == code
        assert "network pycni is not ready on this node" in found["msg"]
    host.wait_ready()
    assert host.call("ADD", "c2").returncode == 0


def test_after_a_boot_with_another_range(host: AgentHost) -> None:
    """The list of before is of no use: no pod starts by it, but by the one that replaces it."""
    host.remember(OWN, OTHER)
    host.start()
    host.wait_ready()
    host.node.container("c1")
    boot(host)
    host.remember(member("a", 1), OTHER)  # registered anew, and has no ranges yet

    host.start()
    wait_until(lambda: "has no podCIDR" in host.get("/readyz")[1], "/readyz does not say it")
    refused = host.call("ADD", "c1")
    host.stop()
    host.remember(member("a", 1, "10.244.9.0/24"), OTHER)
    host.start()
    host.wait_ready()

    assert json.loads(refused.stdout)["code"] == 11
    (address,) = json.loads(host.call("ADD", "c1").stdout)["ips"]
    assert address["address"].startswith("10.244.9.")
    assert made(host, LIST) <= made(host, READY)


def made(host: AgentHost, name: str) -> int:
    """Return when a file of the host was written, ns."""
    return host.path(name).stat().st_mtime_ns


def test_no_call_fails_by_a_list_that_is_new(host: AgentHost) -> None:
    """A first list, and one in place of an earlier agent's, finds the file that it waits for."""
    host.remember(OWN, OTHER)
    for number in range(2):
        host.start()
        host.wait_ready()
        assert made(host, READY) <= made(host, LIST), number
        host.stop()
        found = host.list()
        del found["plugins"][0]["ipam"]["readinessIndicatorFile"]
        host.path(LIST).write_text(json.dumps(found))
        host.path(READY).unlink()


def test_its_file_is_removed(host: AgentHost) -> None:
    """Who empties the directory of the state has pods wait for a moment only."""
    host.remember(OWN, OTHER)
    host.start()
    host.wait_ready()
    ready = host.path(READY)

    for path in (ready, ready.parent):
        host.node.command("rm", "-r", f"/{path.relative_to(host.path('/'))}")
        wait_until(ready.exists, "the file does not come back")

    host.stop()
    assert host.uninstall().returncode == 0
    assert not ready.parent.exists()
