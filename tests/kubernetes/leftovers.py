"""Everything that pods can leave on a node, to be compared before the first and after the last."""

from __future__ import annotations

import json
import re

from tests.e2e.node import STATES, STAYS
from tests.kubernetes.node import Node
from tests.waits import wait_until

_COUNTED = re.compile(r'"packets": \d+, "bytes": \d+')
# The engine's, the agent's, what reclaim remembers between two looks, traces, and counts of calls.
_OF_NETWORK = (
    "engine",
    "/pycni-agent/",
    "/reclaim.json",
    "/run/pycni/trace",
    "/run/pycni/metrics.json",
)
_OF_PROXY = re.compile(r"kube-|nodelocaldns")
# Plugins and agents, ours and the reference's, have "cni" in the names of their tables.
_TABLES = re.compile("cni", re.IGNORECASE)


def found_on(node: Node) -> set[str]:
    """Return what is on a node, a line for each object; what networks keep for ever is left out."""
    return {*_links(node), *_routes(node), *_files(node), *_firewall(node), *_namespaces(node)}


def _links(node: Node) -> list[str]:
    names = [link["ifname"] for link in node.ip("link")]
    return [f"link {name}" for name in names if not _OF_PROXY.match(name)]


def _routes(node: Node) -> list[str]:
    """Routes to pods: those of the uplink are the agent's."""
    found = [*node.ip("-4", "route"), *node.ip("-6", "route")]
    return [f"route {one['dst']} {one['dev']}" for one in found if one.get("dev") != "eth0"]


def _files(node: Node) -> list[str]:
    names = []
    for state in STATES:
        root = node.path(state)
        for path in root.rglob("*"):
            name = state + str(path).removeprefix(str(root))
            if path.is_file() and not _is_of_network(name):
                names.append(f"file {name}")
    return names


def _is_of_network(name: str) -> bool:
    return bool(STAYS.fullmatch(name)) or any(one in name for one in _OF_NETWORK)


def _firewall(node: Node) -> list[str]:
    listing = json.loads(node.command("nft", "-j", "list", "ruleset"))["nftables"]
    found = []
    for entry in listing:
        ((kind, thing),) = entry.items()
        if kind == "element" or _TABLES.search(str(thing.get("table", thing.get("name", "")))):
            thing.pop("handle", None)
            found.append(_COUNTED.sub("", f"{kind} {json.dumps(thing)}"))
    return found


def _namespaces(node: Node) -> list[str]:
    return [f"namespace {name}" for name in node.namespaces()]


def assert_as_before(node: Node, before: set[str]) -> None:
    """Wait until a node is as it was: the runtime tears pods down after the API has lost them."""
    now: set[str] = set()

    def same() -> bool:
        nonlocal now
        now = found_on(node)
        return now == before

    try:
        wait_until(same, "")
    except AssertionError:
        raise AssertionError(
            f"{node.name}: came {sorted(now - before)}, went {sorted(before - now)}"
        ) from None
