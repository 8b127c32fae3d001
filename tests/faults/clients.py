"""The clients of a storm: runtimes of a few containers, on networks of several kinds."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.machine import CNI_BIN, DIST, REFERENCE_BIN, Json

if TYPE_CHECKING:
    from tests.faults.storm import Storm

# Where a call goes, with weights: the plugin's directory, and CNI_PATH.
FROZEN, SCRIPT, GO = (DIST, str(DIST)), (CNI_BIN, str(CNI_BIN)), (DIST, f"{REFERENCE_BIN}:{DIST}")
ROUTES, ROUTE_WEIGHTS = (FROZEN, SCRIPT, GO), (6, 1, 3)
MASTER, FULL_MASTER = "below0", "below1"  # of macvlan; of vlan and ipvlan
VLANS = range(1, 4095)  # 12 bits without 0 and 4095: IEEE 802.1Q, 9.6
SLOTS = 2  # containers of a client
KILLED, COLLECTS, ENDS_WORKER, UNKNOWN, LATE = 0.15, 0.03, 0.02, 0.03, 0.05
DIES, CHECKS = 0.1, 0.15
_COOLDOWN_SECONDS = 2
_FIRST_PORT = 20_000

Route = tuple[Path, str]


@dataclass(frozen=True)
class Network:
    """A network, and the configuration of each plugin of its chain."""

    name: str
    plugins: tuple[Mapping[str, Any], ...]
    weight: int  # how many containers it gets, beside the others
    collect_weight: int  # the same of GC
    may_be_full: bool = False  # its range has fewer addresses than its clients wish for
    lends: bool = False  # each container gets an interface of the node
    has_vlans: bool = False  # each container has one of its own

    def config(self, number: int) -> Json:
        """Return what plugin `number` of the chain gets."""
        return {"cniVersion": "1.1.0", "name": self.name, **self.plugins[number]}


@dataclass
class Container:
    """One container; `addresses` are its own once ADD has returned them, until DEL begins."""

    name: str
    route: Route
    network: Network
    pod: str = ""
    port: int = 0  # of the node, which leads to it
    vlan: int = 0  # its VLAN id, on networks that have such
    addresses: list[str] = field(default_factory=list)
    result: Json | None = None  # of an ADD that has succeeded

    def keys(self) -> Json:
        """Return what the runtime adds to each plugin's configuration."""
        port = {"hostPort": self.port, "containerPort": 80, "protocol": "tcp"}
        ports = {"runtimeConfig": {"portMappings": [port]}} if self.port else {}
        vlan = {"vlanId": self.vlan} if self.network.has_vlans else {}
        return {**ports, **vlan, **({"device": self.device} if self.device else {})}

    @property
    def device(self) -> str:
        """The interface that host-device lends it, "" on other networks."""
        return f"h{self.name}" if self.network.lends and self.name else ""

    def environ(self) -> dict[str, str]:
        """Return what the runtime tells each plugin about it."""
        if not self.name:
            return {}
        pod = f"K8S_POD_NAMESPACE=storm;K8S_POD_NAME={self.pod};K8S_POD_UID={self.pod}"
        return {
            "CNI_CONTAINERID": self.name,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": f"/run/netns/{self.name}",
            "CNI_ARGS": f"IgnoreUnknown=1;{pod}" if self.pod else "",
        }


@dataclass(frozen=True)
class Draw:
    """The random choices of one operation, drawn whether or not they matter."""

    slot: int
    route: Route
    network: int
    collected: int
    kind: float
    kill_at: float | None  # as a part of what such a call takes
    kill_step: int  # which plugin of the chain is killed


def networks(clients: int) -> tuple[Network, ...]:
    """Return a bridge with room for all, one with ports and too few addresses, a ptp, and others.

    Those are macvlan with tables of its own, tap and host-device.
    """
    tight = "10.10.0.0/28" if clients <= 32 else "10.10.0.0/27"  # 13 or 29 addresses
    return (
        Network("storm", (_interface("bridge", "10.9.0.0/22", "fd00:9::/64", bridge="br0"),), 4, 6),
        Network(
            "tight",
            (
                _interface("bridge", tight, bridge="br1", cooldown=_COOLDOWN_SECONDS),
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ),
            3,
            1,
            may_be_full=True,
        ),
        Network("wire", (_interface("ptp", "10.11.0.0/22", "fd00:11::/64"),), 2, 3),
        Network(
            "lan", (_interface("macvlan", "10.12.0.0/22", master=MASTER), {"type": "sbr"}), 2, 2
        ),
        Network("queue", (_interface("tap", "10.13.0.0/22"),), 1, 1),
        Network("lent", (_interface("host-device", "10.14.0.0/22"),), 1, 1, lends=True),
    )


def networks_of_a_full_kernel(_clients: int) -> tuple[Network, ...]:
    """Return those whose drivers this machine's kernel may lack."""
    bridge = _interface("bridge", "10.9.0.0/22", "fd00:9::/64", bridge="br0", ipMasq=False)
    vlan = _interface("vlan", "10.15.0.0/22", master=FULL_MASTER, ipMasq=False)
    ipvlan = _interface("ipvlan", "10.16.0.0/22", "fd00:16::/64", master=FULL_MASTER, ipMasq=False)
    return (
        Network("tagged", (vlan,), 2, 2, has_vlans=True),
        Network("shared", (ipvlan,), 2, 2),
        Network("idle", (_interface("dummy", "10.17.0.0/22", ipMasq=False),), 1, 1),
        Network("apart", (bridge, {"type": "vrf", "vrfname": "blue"}), 2, 2),
    )


class Client:
    """A runtime of a few containers, which does one thing after the other."""

    def __init__(self, storm: Storm, number: int, seed: str) -> None:
        self._storm = storm
        self._number = number
        self._random = random.Random(f"{seed} {number}")
        self._made = 0
        self._slots: list[Container | None] = [None] * SLOTS
        self._pods = [0] * SLOTS  # how many pods each slot has had
        self._again: list[Network | None] = [None] * SLOTS  # of the pod whose sandbox died
        self._dead: list[Container] = []  # whose DEL is still owed

    def present(self) -> list[Container]:
        """Return the containers that exist."""
        return [one for one in list(self._slots) if one]

    def run(self, operations: int) -> None:
        """Do so many operations."""
        for _ in range(operations):
            self._operate(self._draw())

    def leave(self) -> None:
        """Detach all containers and end them."""
        for slot, container in enumerate(self._slots):
            for _ in range(5):
                if container and self._slots[slot]:
                    self._detach(slot, container, None)
            assert self._slots[slot] is None

    def _draw(self) -> Draw:
        chance = self._random
        killed = chance.random() < KILLED
        kill_at = chance.random() * 1.2
        networks = self._storm.networks
        kinds = range(len(networks))
        (route,) = chance.choices(ROUTES, ROUTE_WEIGHTS)
        (network,) = chance.choices(kinds, [one.weight for one in networks])
        (collected,) = chance.choices(kinds, [one.collect_weight for one in networks])
        slot, kill_step = chance.randrange(SLOTS), chance.randrange(2)
        kind = chance.random()
        return Draw(slot, route, network, collected, kind, kill_at if killed else None, kill_step)

    def _operate(self, draw: Draw) -> None:
        rare = draw.kind
        if rare < COLLECTS:
            self._storm.collect(self._storm.networks[draw.collected], draw)
            return
        rare -= COLLECTS
        if 0 <= rare < ENDS_WORKER:
            self._storm.end_worker(rare / ENDS_WORKER)
        rare -= ENDS_WORKER
        if 0 <= rare < UNKNOWN:
            self._delete_unknown(draw)
            return
        rare -= UNKNOWN
        if 0 <= rare < LATE and self._dead:
            self._delete_late(draw)
            return
        container = self._slots[draw.slot]
        if container is None:
            self._attach(draw)
        elif draw.kind > 1 - DIES:
            self._die(draw.slot, container)
        elif container.addresses and draw.kind > 1 - DIES - CHECKS:
            prev = {"prevResult": container.result}
            self._storm.attempt("CHECK", container, draw, **prev)
        else:
            self._detach(draw.slot, container, draw)

    def _new(self, draw: Draw, pod: str, network: Network | None = None) -> Container:
        self._made += 1
        network = network or self._storm.networks[draw.network]
        has_ports = any(plugin["type"] == "portmap" for plugin in network.plugins)
        port = _FIRST_PORT + self._number * SLOTS + draw.slot if has_ports else 0
        # That of a container that died is free only when the kernel has freed its interface.
        vlan = VLANS[(self._number + self._made * self._storm.clients) % len(VLANS)]
        return Container(f"s{self._number}-{self._made}", draw.route, network, pod, port, vlan)

    def _attach(self, draw: Draw) -> None:
        pod = f"p{self._number}-{draw.slot}-{self._pods[draw.slot]}"
        container = self._new(draw, pod, self._again[draw.slot])
        self._storm.node.command("ip", "netns", "add", container.name)
        if container.device:
            words = f"ip link add {container.device} type veth peer name p{container.name}"
            self._storm.node.command(*words.split())
        self._slots[draw.slot] = container  # before the ADD: GC must know it
        result = self._storm.attempt("ADD", container, draw)
        if result is not None:
            self._storm.claim(container, result)

    def _detach(self, slot: int, container: Container, draw: Draw | None) -> None:
        self._storm.disclaim(container)
        if self._storm.attempt("DEL", container, draw) is None:
            return  # to be tried again
        device = container.device
        assert not device or self._storm.node.link("", device), f"{device} is not at home"
        self._slots[slot] = None
        self._pods[slot] += 1
        self._again[slot] = None
        self._delete_netns(container)

    def _delete_unknown(self, draw: Draw) -> None:
        """Send a DEL of which nobody knows anything."""
        unknown = self._new(draw, "")
        if self._storm.attempt("DEL", unknown, draw) is not None:
            self._storm.done["DEL of nothing"] += 1

    def _delete_late(self, draw: Draw) -> None:
        """Send the DEL of a container that died: another one may have its address by now."""
        container = self._dead.pop(0)
        if self._storm.attempt("DEL", container, draw) is None:
            self._dead.append(container)
        else:
            self._storm.dead.discard(container.name)
            self._storm.done["DEL of the dead"] += 1

    def _die(self, slot: int, container: Container) -> None:
        """End a container without a DEL; the pod's next try comes into this slot."""
        self._storm.dead.add(container.name)
        self._storm.disclaim(container)
        self._slots[slot], self._again[slot] = None, container.network
        self._delete_netns(container)
        self._dead.append(container)
        self._storm.done["died"] += 1

    def _delete_netns(self, container: Container) -> None:
        self._storm.node.command("ip", "netns", "delete", container.name)
        if container.device:  # at home, unless its container has died with it
            words = ("ip", "link", "delete", f"p{container.name}")
            subprocess.run(words, stderr=subprocess.DEVNULL, check=False)


def _interface(kind: str, *subnets: str, cooldown: int = 0, **keys: Any) -> Mapping[str, Any]:
    """Return the configuration of what makes an interface, with host-local on these subnets."""
    gateway = {"isGateway": True} if kind == "bridge" else {}
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}] for subnet in subnets],
        "routes": [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets],
        "releaseCooldown": cooldown,
    }
    return {"type": kind, **gateway, "ipMasq": True, "ipam": ipam, **keys}
