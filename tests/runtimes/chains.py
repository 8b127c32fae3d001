"""The lists of plugins that a Kubernetes node has in /etc/cni/net.d."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from tests.e2e.node import NODE4, NODE6
from tests.machine import ROOT, Json
from tests.runtimes.node import RuntimeNode

PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}}


@dataclass(frozen=True)
class Chain:
    """A list, and what pods on it are like."""

    config: Json
    subnets: tuple[str, ...]
    masquerades: bool
    bridge: str = ""

    def configure(self, node: RuntimeNode) -> None:
        """Make it the node's network; the world has routes to pods that are not masqueraded."""
        node.configure(self.config)
        if not self.masquerades:
            for subnet in self.subnets:
                via = NODE6 if ":" in subnet else NODE4
                node.command("ip", "-n", "outside", "route", "add", subnet, "via", via)


def _bridge() -> Chain:
    """Return what the README tells an operator to begin with."""
    config = json.loads((ROOT / "conf" / "55-portmap.conflist").read_text())
    plugin = config["plugins"][0]
    subnets = tuple(pool[0]["subnet"] for pool in plugin["ipam"]["ranges"])
    return Chain(config, subnets, masquerades=True, bridge=plugin["bridge"])


def _kind() -> Chain:
    """Return what kind writes on each of its nodes, whose routers know all pods."""
    subnets = ("10.244.0.0/24", "fd00:10:244::/64")
    ipam = {
        "type": "host-local",
        "dataDir": "/run/cni-ipam-state",
        "ranges": [[{"subnet": subnet}] for subnet in subnets],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    plugin = {"type": "ptp", "ipMasq": False, "ipam": ipam, "mtu": 1500}
    config = {"cniVersion": "0.3.1", "name": "kindnet", "plugins": [plugin, PORTMAP]}
    return Chain(config, subnets, masquerades=False)


Judge = Callable[[], None]  # fails when something is left
Use = Callable[[Chain], Judge]
CHAINS = {"bridge": _bridge(), "kind": _kind()}


def with_plugin(chain: Chain, *plugins: Json) -> Chain:
    """Return a chain with more plugins at its end."""
    config = {**chain.config, "plugins": [*chain.config["plugins"], *plugins]}
    return Chain(config, chain.subnets, chain.masquerades, chain.bridge)
