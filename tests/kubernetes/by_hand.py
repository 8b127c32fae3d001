"""The network of a cluster made by hand, once: what kindnet has on a node.

It stands in for an agent where a test is about the plugins and the cluster alone, and a cluster
that moves to pycni comes from it: a list of ptp, host-local and portmap, a route to each other
node, and masquerading of what leaves the cluster.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.kubernetes.api import NODES, Api
from tests.kubernetes.node import BIN, CONFLISTS, Node
from tests.kubernetes.world import PODS4, PODS6
from tests.machine import Json

LIST = "10-kindnet.conflist"
_NETWORK, _DATA_DIR = "kindnet", "/run/cni-ipam-state"
LEASES = f"{_DATA_DIR}/{_NETWORK}"  # a file for each address
_TABLE = "by-hand"


def ranges_of(api: Api, nodes: Iterable[Node]) -> dict[str, list[str]]:
    """Return the ranges of pods that the controller manager has given to each node."""
    names = [node.name for node in nodes]
    found = api.wait(
        NODES,
        lambda found: all(found.get(name, {}).get("spec", {}).get("podCIDRs") for name in names),
        "nodes have ranges for pods",
    )
    return {name: found[name]["spec"]["podCIDRs"] for name in names}


def plugins(ranges: Iterable[str], **keys: object) -> list[Json]:
    """Return kindnet's plugins; keys for the first by keyword."""
    routes = [{"dst": "::/0" if ":" in item else "0.0.0.0/0"} for item in ranges]
    ipam = {
        "type": "host-local",
        "dataDir": _DATA_DIR,
        "ranges": [[{"subnet": item}] for item in ranges],
        "routes": routes,
    }
    first: Json = {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": ipam, **keys}
    return [first, {"type": "portmap", "capabilities": {"portMappings": True}}]


def install(node: Node, bin_dir: Path) -> None:
    """Copy plugins into the node's directory."""
    target = node.path(BIN)
    shutil.copytree(bin_dir, target, symlinks=True, dirs_exist_ok=True)


def connect(api: Api, nodes: Iterable[Node]) -> None:
    """Give each node routes to the pods of all others, and masquerading of what leaves."""
    nodes = list(nodes)
    ranges = ranges_of(api, nodes)
    for node in nodes:
        lines = [
            f"ip route replace {item} via {other.addresses[':' in item]}"
            for other in nodes
            if other is not node
            for item in ranges[other.name]
        ]
        lines.append("echo 1 >/proc/sys/net/ipv4/ip_forward")
        lines.append("echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
        node.command("sh", "-ec", "\n".join(lines))
        node.command("nft", "-f", "-", stdin=_masquerading())


def disconnect(node: Node) -> None:
    """Remove the masquerading, the routes and the list of a node."""
    node.run("nft", "delete", "table", "inet", _TABLE)
    for family in ("-4", "-6"):
        for route in node.ip(family, "route", "show", "proto", "boot"):
            if "gateway" in route and route["dst"] != "default":
                node.command("ip", family, "route", "delete", route["dst"], "via", route["gateway"])
    node.path(f"{CONFLISTS}/{LIST}").unlink(missing_ok=True)


def _masquerading() -> str:
    return f"""
        table inet {_TABLE}
        delete table inet {_TABLE}
        table inet {_TABLE} {{
            chain leaving {{
                type nat hook postrouting priority srcnat + 10;
                ip saddr {PODS4} ip daddr != {PODS4} masquerade
                ip6 saddr {PODS6} ip6 daddr != {PODS6} masquerade
            }}
        }}
        """


def configure(api: Api, nodes: Iterable[Node], version: str, **keys: object) -> None:
    """Write the list of each node; keys for its first plugin by keyword."""
    nodes = list(nodes)
    ranges = ranges_of(api, nodes)
    for node in nodes:
        text = _list_text(version, plugins(ranges[node.name], **keys))
        node.write_list(LIST, text)


def _list_text(version: str, chain: list[Json]) -> str:
    return json.dumps({"cniVersion": version, "name": _NETWORK, "plugins": chain})
