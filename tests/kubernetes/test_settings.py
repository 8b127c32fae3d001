"""Settings that a cluster may need: an API server without kube-proxy, and a list of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.kubernetes import agent_pods
from tests.kubernetes.agent_pods import AgentPods
from tests.kubernetes.agents import Agents, answers
from tests.kubernetes.api import NODES
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.node import Node
from tests.kubernetes.pods import Pods, pod, reaches
from tests.kubernetes.test_nodes import await_paths
from tests.kubernetes.world import ADDRESS4, OWN_NETNS, run
from tests.sockets import open_socket
from tests.waits import wait_until

pytestmark = [
    pytest.mark.rotating(2),  # by each way of connecting pods, on half of the days
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(agent_pods.missing()), reason=agent_pods.missing() or "-"),
]

SERVICE = ("10.96.0.1", 443)  # of the API server, as pods know it
FOLDERS = ("/etc/cni", "/opt/cni/bin", "/var/lib/cni", "/run/pycni")
SYSCTL = "net.core.somaxconn"
LIST = """\
apiVersion: v1
kind: ConfigMap
metadata: { name: pycni-template, namespace: kube-system }
data:
  list: |
    {
      "plugins": [
        {
          "type": "ptp",
          "mtu": "${mtu}",
          "ipam": { "type": "host-local", "ranges": "${ranges}", "routes": "${routes}" }
        },
        { "type": "tuning", "sysctl": { "net.core.somaxconn": "1234" } }
      ]
    }
"""


MASQUERADE = f"""\
apiVersion: v1
kind: ConfigMap
metadata: {{ name: ip-masq-agent, namespace: kube-system }}
data:
  config: |
    nonMasqueradeCIDRs: ["{ADDRESS4}/32"]
    resyncInterval: 1s
"""


@pytest.fixture
def known_outside(network: Cluster) -> Iterator[None]:
    """Have the host outside answer pods of the first node, whose addresses it sees."""
    (range4,) = [one for one in network.ranges()[network.first.name] if ":" not in one]
    run("ip", "route", "add", range4, "via", network.first.addresses[0])
    yield
    run("ip", "route", "delete", range4)


@pytest.mark.usefixtures("known_outside")
def test_what_is_not_masqueraded(network: Cluster, agents: Agents, pods: Pods) -> None:
    """The ConfigMap ip-masq-agent, as that program has it, has a host outside see the pod."""
    node = network.first
    (one,) = pods.start(pod("seen", node.name))
    assert reaches(one.netns, OWN_NETNS, ADDRESS4) == node.addresses[0]

    network.plane.kubectl("apply", "-f", "-", stdin=MASQUERADE)
    try:
        agents.restart(node)  # a kubelet looks at ConfigMaps of pods once a minute
        wait_until(
            lambda: reaches(one.netns, OWN_NETNS, ADDRESS4) == one.address(4),
            "the pod is masqueraded",
        )
    finally:
        network.plane.kubectl("delete", "-f", "-", stdin=MASQUERADE)
    agents.restart(node)
    wait_until(
        lambda: reaches(one.netns, OWN_NETNS, ADDRESS4) == node.addresses[0],
        "the pod is not masqueraded",
    )


@pytest.fixture
def alone(network: Cluster, agents: Agents) -> Iterator[Node]:
    """A node without kube-proxy, whose agent has the address of the API server, and a list."""
    assert isinstance(agents, AgentPods)
    node, plane = network.third, network.plane
    text, count = re.subn(
        r'(?m)^  PYCNI_API_SERVER: ""$',
        f'  PYCNI_API_SERVER: "{ADDRESS4}:6443"\n  PYCNI_TEMPLATE: /etc/pycni/template/list',
        agents.text(),
    )
    assert count == 1
    node.daemons["kube-proxy"].stop()
    node.command("kube-proxy", "--cleanup", "--config", "/etc/kubernetes/kube-proxy.yaml")
    plane.kubectl("apply", "-f", "-", stdin=f"{text}\n---\n{LIST}")
    agents.restart(node)
    yield node
    plane.kubectl("apply", "-f", "-", stdin=agents.text())
    plane.kubectl("delete", "-f", "-", stdin=LIST)
    node.daemons["kube-proxy"].start()
    agents.restart(node)


def connects(node: Node, address: str, port: int) -> bool:
    """Tell whether a program accepts a connection from a node."""
    with open_socket(node.netns, "tcp", address) as sock:
        try:
            sock.connect((address, port))
        except OSError:
            return False
    return True


def known_nodes(node: Node) -> str:
    """Return how many Nodes the agent of a node knows."""
    found = re.search(r"(?m)^pycni_nodes (\S+)$", answers(node, "/metrics")[1])
    return found[1] if found else ""


def test_without_kube_proxy(network: Cluster, alone: Node, agents: Agents, pods: Pods) -> None:
    """The agent follows the Nodes by that address, its list serves, and no token is on the disk."""
    assert not connects(alone, *SERVICE)
    agents.wait_ready(alone)
    wait_until(lambda: known_nodes(alone) == "3.0", "the agent does not know all Nodes")
    network.api.create(NODES, {"metadata": {"name": "another"}})
    try:
        wait_until(lambda: known_nodes(alone) == "4.0", "the agent does not follow the Nodes")
    finally:
        network.api.delete(f"{NODES}/another")

    one, other = pods.start(pod("one", alone.name), pod("other", network.first.name))

    await_paths((one, other))
    assert alone.command("sysctl", "-n", SYSCTL, netns=one.netns).strip() == "1234"
    assert alone.run("grep", "-rlE", "eyJ[A-Za-z0-9_-]{20}|BEGIN .*PRIVATE", *FOLDERS).stdout == ""
