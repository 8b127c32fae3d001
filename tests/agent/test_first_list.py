"""What a node needs before it gets its first list of plugins, and what is said until then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.host import LIST, RANGES, AgentHost
from tests.api_server import ApiServer
from tests.api_server import node as node_of
from tests.machine import Json
from tests.resident import visiting
from tests.waits import wait_until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def host() -> Iterator[AgentHost]:
    """A node of the test's own, without an agent yet."""
    made = AgentHost()
    yield made
    made.close()


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
