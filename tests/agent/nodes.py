"""Nodes of a cluster as network namespaces, joined by bridges or routers, in this process."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.cluster import Cluster, Member
from agent.network import watched
from agent.network.fabric import Applied, Fabric
from agent.network.settings import Settings
from cni_common.kernel.netns import NETLINK_NETFILTER, NETLINK_ROUTE, NetNS
from tests.machine import Machine
from tests.resident import visiting

Json = dict[str, Any]


def member(name: str, number: int, **more: Any) -> Member:
    """Return the node with the number, in the first network: 192.168.1.<number>, its ranges."""
    keys: dict[str, Any] = {
        "addresses": addresses(1, number),
        "ranges": ranges(number),
        **more,
    }
    return Member(name, f"uid-{name}", **keys)


def addresses(network: int, number: int) -> tuple[Any, ...]:
    """Return a node's addresses in a network of the underlay."""
    texts = (f"192.168.{network}.{number}", f"fd00:{network}::{number}")
    return tuple(map(ipaddress.ip_address, texts))


def ranges(number: int) -> tuple[Any, ...]:
    """Return the ranges of a node's pods."""
    texts = (f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64")
    return tuple(map(ipaddress.ip_network, texts))


class Node:
    """One node: a namespace, its member, its fabric."""

    def __init__(self, lan: Lan, name: str, number: int, network: int, settings: Settings) -> None:
        self.lan, self.name, self.number = lan, name, number
        self.netns = lan.machine.container()
        self.member = member(name, number, addresses=addresses(network, number))
        self.log: list[str] = []
        self.settings = settings
        self.fabric = Fabric(settings, self.log.append)
        lan.plug(self.netns, network, number)

    def apply(self, *others: Member, own: Member | None = None) -> Applied:
        """Apply the cluster of this node and others."""
        with visiting(self.netns):
            return self.fabric.apply(Cluster(own or self.member, others))

    def restart(self) -> None:
        """Have another agent, which knows nothing of the last one."""
        self.fabric.close()
        self.fabric = Fabric(self.settings, self.log.append)

    def remove(self) -> tuple[str, ...]:
        """Uninstall; return the problems."""
        with visiting(self.netns):
            return self.fabric.remove()

    def pod(self) -> str:
        """Return the namespace of a pod with the addresses .10 and ::10 of the node's ranges."""
        machine = self.lan.machine
        netns = machine.container()
        machine.command(
            self.netns, "ip", *f"link add pod0 type veth peer eth0 netns {netns}".split()
        )
        for where, name in ((self.netns, "pod0"), (netns, "eth0")):
            machine.without_detection(where, name)
        four, six = f"10.244.{self.number}", f"fd00:10:244:{self.number}:"
        machine.do(
            self.netns,
            f"ip addr add {four}.1/32 dev pod0",
            f"ip addr add {six}:1/128 dev pod0",
            "ip link set pod0 up",
            f"ip route add {four}.10/32 dev pod0",
            f"ip route add {six}:10/128 dev pod0",
        )
        machine.do(
            netns,
            "ip link set eth0 up",
            f"ip addr add {four}.10/24 dev eth0",
            f"ip addr add {six}:10/64 dev eth0",
            f"ip route add default via {four}.1",
            f"ip route add default via {six}:1",
        )
        machine.await_use(netns, "eth0")
        return netns

    # --- judged by ip, bridge, nft ---

    def ip(self, *words: str) -> list[Json]:
        """Return what `ip -j` says on this node."""
        text = self.lan.machine.command(self.netns, "ip", "-j", "-d", *words)
        return [one for one in json.loads(text or "[]") if one]

    def routes(self) -> dict[str, str]:
        """Return the routes with the agent's protocol: the next hop and device by destination."""
        found = {}
        for version in ("-4", "-6"):
            for one in self.ip(version, "route", "show", "table", "main", "protocol", "112"):
                kind = "" if one["type"] == "unicast" else one["type"]
                words = (kind, one.get("gateway"), one.get("dev"))
                found[one["dst"]] = " ".join(filter(None, words))
        return found

    def sysctl(self, name: str) -> str:
        """Return a sysctl, its path below /proc/sys."""
        return self.command("cat", f"/proc/sys/{name}").strip()

    def snapshot(self) -> Json:
        """Return links, addresses, routes and nftables, comparable."""
        listings = ("link", "addr", "-4 route", "-6 route")
        found = {what: self.command("ip", "-br", *what.split()) for what in listings}
        return {**found, "nft": self.command("nft", "-s", "list", "ruleset")}

    def await_uplink(self) -> None:
        """Wait until the kernel uses the uplink's addresses."""
        self.lan.machine.await_use(self.netns, "eth0")

    def do(self, *lines: str) -> None:
        """Run commands on this node."""
        self.lan.machine.do(self.netns, *lines)

    def command(self, *words: str) -> str:
        """Return what a command prints on this node."""
        return self.lan.machine.command(self.netns, *words)

    def changes(self) -> Callable[[], list[int]]:
        """Watch the kernel; the result returns the types of the events until then."""
        netns = NetNS(self.netns)
        channels = [
            netns.channel(NETLINK_ROUTE, watched.GROUPS),
            netns.channel(NETLINK_NETFILTER, watched.NFT_GROUPS),
        ]

        def seen() -> list[int]:
            kinds = []
            for one in channels:
                while events := one.read_events():
                    kinds += [kind for kind, _ in events]
            netns.close()
            return kinds

        return seen

    @contextmanager
    def listening(self) -> Iterator[list[str]]:
        """Give the reasons for which the node's fabric wakes."""
        reasons: list[str] = []
        with visiting(self.netns):
            listener = self.fabric.listen(reasons.append)
        try:
            yield reasons
        finally:
            listener.close()


class Lan:
    """A router that is in every network of the underlay, and the nodes on its bridges.

    The router of network n is 192.168.<n>.254 and fd00:<n>::254; nodes have it as default.
    """

    def __init__(self, tmp: Path, machine: Machine) -> None:
        self.machine, self._tmp = machine, tmp
        self.router = machine.host
        self._networks: set[int] = set()
        self._nodes: list[Node] = []
        for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            machine.command(self.router, "sh", "-c", f"echo 1 >/proc/sys/{name}")

    def node(self, name: str, number: int, *, network: int = 1, **settings: Any) -> Node:
        """Return a new node, the last octet of whose addresses is `number`."""
        places = {
            "state_dir": str(self._tmp / name),
            "pods_state_dir": str(self._tmp / "pods"),
            "leases": self._tmp / f"leases-{name}",
        }
        made = Node(self, name, number, network, Settings(**{**places, **settings}))
        self._nodes.append(made)
        return made

    def close(self) -> None:
        """Let go of the nodes' sockets."""
        for node in self._nodes:
            node.fabric.close()

    def plug(self, netns: str, network: int, number: int) -> None:
        """Connect a namespace as eth0 to a network of the underlay."""
        bridge = f"lan{network}"
        if network not in self._networks:
            self._networks.add(network)
            self.machine.do(self.router, f"ip link add {bridge} type bridge")
            self.machine.without_detection(self.router, bridge)
            self.machine.do(
                self.router,
                f"ip addr add 192.168.{network}.254/24 dev {bridge}",
                f"ip addr add fd00:{network}::254/64 dev {bridge}",
                f"ip link set {bridge} up",
            )
        port = f"port{network}-{number}"
        pair = f"ip link add {port} master {bridge} type veth peer eth0 netns {netns}"
        self.machine.command(self.router, *pair.split())
        self.machine.without_detection(netns, "eth0")
        self.machine.do(self.router, f"ip link set {port} up")
        self.machine.do(
            netns,
            "ip link set lo up",
            "ip link set eth0 up",
            f"ip addr add 192.168.{network}.{number}/24 dev eth0",
            f"ip addr add fd00:{network}::{number}/64 dev eth0",
            f"ip route add default via 192.168.{network}.254",
            f"ip route add default via fd00:{network}::254",
        )
        self.machine.await_use(netns, "eth0")
