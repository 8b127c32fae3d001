"""A pod with a main network and secondary ones, attached by a delegating caller as Multus is.

The caller is the runtime's only plugin. It attaches the main network as eth0, the others as net1,
net2, …, hands each what the pod asks of it (addresses, MAC, device), and detaches in reverse order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.e2e.node import Done, Node
from tests.machine import Json

pytestmark = pytest.mark.both_edges

MAC1, MAC2 = "0a:58:0a:09:00:05", "02:42:c0:a8:05:09"


class Pod:
    """A pod whose networks are lists; `asks` has what the pod asks of each, by its interface."""

    def __init__(
        self, node: Node, networks: Sequence[Json], asks: Mapping[str, Json] | None = None
    ) -> None:
        self.node = node
        self.netns = node.container("pod")
        names = ["eth0", *(f"net{number}" for number in range(1, len(networks)))]
        self.networks = dict(zip(names, networks, strict=True))
        self.results: dict[str, Json] = {}  # the cache
        self._asks = asks or {}

    def add(self) -> Done | None:
        """Attach each network; after a failure, which is returned, detach all in reverse order."""
        for ifname, network in self.networks.items():
            result: Json = {}
            for plugin in network["plugins"]:
                done = self._call("ADD", ifname, plugin, result)
                if done.returncode:
                    self.delete()
                    return done
                result = json.loads(done.stdout)
            self.results[ifname] = result
        return None

    def check(self) -> None:
        """Check each network; each must be as ADD has left it."""
        for ifname, network in self.networks.items():
            for plugin in network["plugins"]:
                done = self._call("CHECK", ifname, plugin, self.results[ifname])
                assert done.returncode == 0, f"{ifname}: {done.stdout}{done.stderr}"

    def delete(self, *, cached: bool = True) -> None:
        """Detach each network in reverse order, with the cache or without it."""
        for ifname, network in reversed(self.networks.items()):
            result = self.results.get(ifname, {}) if cached else {}
            for plugin in reversed(network["plugins"]):
                done = self._call("DEL", ifname, plugin, result)
                assert (done.returncode, done.stdout) == (0, ""), f"{ifname}: {done.stderr}"

    def move_default_route(self, ifname: str, gateway: str) -> None:
        """Have the default route lead over another network, as the pod's annotation asks."""
        script = f"ip route del default; ip route add default via {gateway} dev {ifname}"
        self.node.command("sh", "-ec", script, netns=self.netns)

    def _call(self, command: str, ifname: str, plugin: Json, result: Json) -> Done:
        network, ask = self.networks[ifname], self._asks.get(ifname, {})
        config: Json = {"cniVersion": network["cniVersion"], "name": network["name"], **plugin}
        capabilities = config.pop("capabilities", {})
        runtime = {key: value for key, value in ask.items() if capabilities.get(key)}
        if runtime:
            config["runtimeConfig"] = runtime
        if "cni-args" in ask:
            config["args"] = {"cni": ask["cni-args"]}
        if result:
            config["prevResult"] = result
        args = "IgnoreUnknown=true;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
        args += ";K8S_POD_INFRA_CONTAINER_ID=pod1;K8S_POD_UID=8a7d"
        if "mac" in ask:
            args += f";MAC={ask['mac']}"
        return self.node.execute(
            plugin["type"],
            command,
            config,
            self.netns,
            containerid="pod1",
            ifname=ifname,
            args=args,
        )


def a_list(name: str, *plugins: Json) -> Json:
    """Return a list of plugins."""
    return {"cniVersion": "1.0.0", "name": name, "plugins": list(plugins)}


def host_local(subnet: str, **keys: Any) -> Json:
    """Return an `ipam` section."""
    return {"type": "host-local", "ranges": [[{"subnet": subnet, **keys}]]}


def main_network() -> Json:
    """Return the pods' main network: routed, with host ports."""
    return a_list(
        "pods",
        {
            "type": "ptp",
            "ipMasq": True,
            "ipam": {**host_local("10.42.0.0/24"), "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    )


def storage(**keys: Any) -> Json:
    """Return a network on the host's interface up0."""
    macvlan = {"type": "macvlan", "master": "up0", "capabilities": {"mac": True}}
    return a_list(
        "storage", {**macvlan, "ipam": host_local("192.0.2.0/24", rangeStart="192.0.2.100"), **keys}
    )


def control(**keys: Any) -> Json:
    """Return a network whose addresses the pod chooses."""
    bridge = {
        "type": "bridge",
        "bridge": "br-control",
        "capabilities": {"ips": True, "mac": True},
        "ipam": {"type": "static"},
    }
    return a_list("control", {**bridge, **keys})


ASKS: dict[str, Json] = {
    "eth0": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    "net1": {"mac": MAC1, "infinibandGUID": "c2:11:22:33:44:55:66:77", "deviceID": "0000:00:00.0"},
    "net2": {"ips": ["192.168.5.9/24"], "mac": MAC2},
}


@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no-cache"])
def test_a_pod_with_three_networks(node: Node, *, cached: bool) -> None:
    """Each interface has what the pod asked of its network; after DEL nothing is left."""
    node.outside()
    last = control()
    last["plugins"].append({"type": "sbr"})
    pod = Pod(node, [main_network(), storage(), last], ASKS)

    assert pod.add() is None

    assert "from 192.168.5.9 lookup 100" in node.command("ip", "rule", netns=pod.netns)
    macs = {link["ifname"]: link["address"] for link in node.ip(pod.netns, "link")}
    assert (macs["net1"], macs["net2"]) == (MAC1, MAC2)
    assert node.addresses(pod.netns, "net2") == ["192.168.5.9/24"]
    assert node.reaches(pod.netns, "10.42.0.1")
    assert node.reaches(pod.netns, "192.0.2.2")  # over net1: eth0 has no route to that subnet
    pod.check()
    pod.delete(cached=cached)
    assert [name for name in node.links(pod.netns) if name != "lo"] == []
    assert "lookup 100" not in node.command("ip", "rule", netns=pod.netns)
    assert node.traces("br-control") == {}


def test_a_default_route_that_moves_to_a_secondary_network(node: Node) -> None:
    """The caller changes the route itself: CHECK of eth0 alone tells, and DEL is complete."""
    node.outside()
    pod = Pod(node, [main_network(), storage()], ASKS)
    assert pod.add() is None

    pod.move_default_route("net1", "192.0.2.2")

    (default,) = [one for one in node.ip(pod.netns, "route") if one["dst"] == "default"]
    assert (default["dev"], default["gateway"]) == ("net1", "192.0.2.2")
    with pytest.raises(AssertionError, match=r"(?s)eth0: .*route to 0\.0\.0\.0/0"):
        pod.check()
    pod.delete()
    assert node.traces() == {}


def test_a_secondary_network_that_fails(node: Node) -> None:
    """The caller detaches all networks, also that which failed and those which never began."""
    node.outside()
    broken = storage(mtu=9000)  # more than the master has
    pod = Pod(
        node,
        [main_network(), control(), broken, control(bridge="br-2")],
        {
            "net1": ASKS["net2"],
            "net3": ASKS["net2"],
        },
    )

    failed = pod.add()

    assert failed is not None
    assert "'up0' has 1500 bytes" in json.loads(failed.stdout)["msg"]
    assert [name for name in node.links(pod.netns) if name != "lo"] == []
    assert node.traces("br-control") == {}


def test_a_pod_that_is_gone(node: Node) -> None:
    """The namespace has gone before the caller detaches, without a cache."""
    node.outside()
    pod = Pod(node, [main_network(), storage(), control()], ASKS)
    assert pod.add() is None

    node.delete_container("pod")
    pod.delete(cached=False)

    assert node.traces("br-control") == {}
