"""The lists of plugins that a Kubernetes node has in /etc/cni/net.d."""

from dataclasses import dataclass
from typing import Any

from tests.e2e.node import NODE4, NODE6
from tests.machine import Json
from tests.runtimes.node import RuntimeNode

PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}}


@dataclass(frozen=True)
class Chain:
    """A list, and what pods on it are like."""

    config: Json
    subnets: tuple[str, ...]
    masquerades: bool
    bridge: str = "none"

    def configure(self, node: RuntimeNode) -> None:
        """Make it the node's network; the world has routes to pods that are not masqueraded."""
        node.configure(self.config)
        if not self.masquerades:
            for subnet in self.subnets:
                via = NODE6 if ":" in subnet else NODE4
                node.command("ip", "-n", "outside", "route", "add", subnet, "via", via)


def _ipam(subnets: tuple[str, ...], **keys: Any) -> Json:
    routes = [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets]
    ranges = [[{"subnet": subnet}] for subnet in subnets]
    return {"type": "host-local", "ranges": ranges, "routes": routes, **keys}


def _bridge(subnets: tuple[str, ...] = ("10.78.0.0/24", "fd00:78::/64")) -> Chain:
    plugin = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": _ipam(subnets),
    }
    config = {"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin, PORTMAP]}
    return Chain(config, subnets, masquerades=True, bridge="cni0")


def _kind(subnets: tuple[str, ...] = ("10.244.0.0/24", "fd00:10:244::/64")) -> Chain:
    """Return what kind writes on each of its nodes."""
    ipam = _ipam(subnets, dataDir="/run/cni-ipam-state")
    plugin = {"type": "ptp", "ipMasq": False, "ipam": ipam, "mtu": 1500}
    config = {"cniVersion": "0.3.1", "name": "kindnet", "plugins": [plugin, PORTMAP]}
    return Chain(config, subnets, masquerades=False)


CHAINS = {"bridge": _bridge(), "kind": _kind()}


def with_plugin(chain: Chain, *plugins: Json) -> Chain:
    """Return a chain with more plugins at its end."""
    config = {**chain.config, "plugins": [*chain.config["plugins"], *plugins]}
    return Chain(config, chain.subnets, chain.masquerades, chain.bridge)
