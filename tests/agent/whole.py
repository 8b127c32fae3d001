"""A cluster of whole agents: three nodes on a bridge, with Kubernetes' own API server beside it."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import WireGuard

from agent.cluster import Network
from tests.agent.host import STATE, AgentHost
from tests.agent.kube_api import PORT, KubeApi
from tests.agent.wire import Wire
from tests.machine import Machine
from tests.resident import start_in, visiting
from tests.waits import wait_until

BRIDGE = "underlay"
ADDRESS4, ADDRESS6 = "192.0.2.1", "2001:db8::1"
DEVICE = "pycni-wg"
KEY_FILE = f"{STATE}/wireguard.key"
# Seconds that an emulated machine may take for a step, and between two looks, which cost it time.
PATIENCE, PAUSE = 600.0, 1.0
NAMES = ("a", "b", "c")
MODE = "wireguard"
MARK = b"not encrypted"  # in packets of pods; ping takes 16 bytes at most


@dataclass(frozen=True)
class Pod:
    """An attachment of a node's own list of plugins."""

    name: str
    netns: str
    addresses: tuple[str, ...]
    mtu: int  # of its interface, as the plugin tells

    def address(self, version: int) -> str:
        """Return its address of a family."""
        return next(one for one in self.addresses if (":" in one) == (version == 6))


def ranges(number: int) -> tuple[str, ...]:
    """Return the ranges of a node's pods."""
    return f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"


class WholeCluster:
    """Nodes a, b and c with agents, an API server, and a pod on each node."""

    def __init__(self, program: Path, folder: Path, machine: Machine) -> None:
        """`program` is the agent; `machine` gives the namespace with the bridge."""
        self.machine = machine
        self._make_bridge()
        account = folder / "account"
        account.mkdir()
        self.kube = KubeApi(machine.host, ADDRESS4, account, PATIENCE)
        self.hosts: dict[str, AgentHost] = {}
        for number, name in enumerate(NAMES, start=1):
            self.hosts[name] = self._host(program, number)
            self.register(name)
        self.pods: dict[str, Pod] = {}

    def _make_bridge(self) -> None:
        machine, netns = self.machine, self.machine.host
        machine.do(netns, f"ip link add {BRIDGE} type bridge")
        machine.without_detection(netns, BRIDGE)
        machine.do(
            netns,
            f"ip addr add {ADDRESS4}/24 dev {BRIDGE}",
            f"ip addr add {ADDRESS6}/64 dev {BRIDGE}",
            f"ip link set {BRIDGE} up",
        )

    def _host(self, program: Path, number: int) -> AgentHost:
        host = AgentHost(program, number=number)
        machine, port = self.machine, f"port-{host.name}"
        machine.do(host.node.netns(), f"ip link set beyond netns {machine.host}")
        machine.do(
            machine.host,
            f"ip link set beyond name {port}",
            f"ip link set {port} master {BRIDGE} up",
        )
        # A packet that has no other way would go there, for all to see.
        host.node.command("ip", "route", "add", "default", "via", ADDRESS4)
        host.node.command("ip", "route", "add", "default", "via", ADDRESS6)
        host.api_server = f"{ADDRESS4}:{PORT}"
        return host

    @property
    def ranges(self) -> list[Network]:
        """The ranges of the pods of all nodes."""
        texts = [one for number, _ in enumerate(NAMES, start=1) for one in ranges(number)]
        return [ipaddress.ip_network(one) for one in texts]

    def register(self, name: str) -> None:
        """Make the Node of a node."""
        host = self.hosts[name]
        self.kube.add_node(name, host.addresses, ranges(host.number))

    def start(self, *names: str) -> None:
        """Start agents, and wait until they are ready."""
        for name in names:
            self.hosts[name].start(
                *("--service-account", str(self.kube.account), "--mode", MODE),
                *("--engine", "false"),  # a program of its own, which takes as long as the agent
            )
        for name in names:
            self.hosts[name].wait_ready(PATIENCE, PAUSE)

    def start_pod(self, name: str) -> None:
        """Attach a namespace of a node, by the list that its agent has written."""
        host = self.hosts[name]
        host.node.container("pod")
        done = host.call("ADD", "pod")
        assert done.returncode == 0, done.stdout + done.stderr
        result = json.loads(done.stdout)
        texts = tuple(one["address"].partition("/")[0] for one in result["ips"])
        (mtu,) = (one["mtu"] for one in result["interfaces"] if one["name"] == "eth0")
        self.pods[name] = Pod(name, host.node.netns("/run/netns/pod"), texts, mtu)

    def wire(self, name: str) -> Wire:
        """Watch all that goes between a node and the bridge."""
        return Wire(self.machine.host, f"port-{name}")

    def inner(self, name: str) -> Wire:
        """Watch all that a node's tunnel encrypts and decrypts."""
        return Wire(self.hosts[name].node.netns(), DEVICE, is_bare=True)

    @contextmanager
    def knocking(self, name: str, other: str) -> Iterator[None]:
        """Have the pod of a node send packets with MARK to that of another, heard or not."""
        client, server = self.pods[name], self.pods[other]
        words = ("ping", "-n", "-i0.5", "-s64", "-p", MARK.hex())
        pings = [
            start_in(client.netns, *words, address, stdout=subprocess.DEVNULL)
            for address in server.addresses
        ]
        try:
            yield
            assert all(one.poll() is None for one in pings)
        finally:
            for one in pings:
                one.kill()
                one.wait()

    # --- what is so ---

    def peers(self, name: str) -> set[str]:
        """Return the public keys to which a node's device leads, as the kernel has them."""
        found = set()
        with visiting(self.hosts[name].node.netns()), WireGuard() as wireguard:
            for message in wireguard.info(DEVICE):
                for peer in message.get("WGDEVICE_A_PEERS") or ():
                    key = peer.get("WGPEER_A_PUBLIC_KEY")
                    key = key.get("value") if isinstance(key, dict) else key
                    found.add(key.decode() if isinstance(key, bytes) else str(key))
        return found

    def routes(self, name: str) -> dict[str, str]:
        """Return the routes of a node's agent: the device or type by destination."""
        found = {}
        for version in ("-4", "-6"):
            words = ("ip", "-j", version, "route", "show", "protocol", "112")
            for one in json.loads(self.hosts[name].node.command(*words) or "[]"):
                is_refusal = one.get("type") == "unreachable"
                found[one["dst"]] = "unreachable" if is_refusal else one["dev"]
        return found

    def await_tunnels(self, *names: str) -> dict[str, str]:
        """Wait until each of these nodes has tunnels to exactly all others; return the keys."""

        def are_there() -> bool:
            keys = self.kube.keys()
            return keys.keys() >= {*names} and all(
                self.peers(one) == {key for other, key in keys.items() if other != one}
                and self.routes(one) == self._routes(one, names)
                for one in names
            )

        wait_until(are_there, lambda: self._why(names), PATIENCE, PAUSE)
        return self.kube.keys()

    def _routes(self, name: str, names: Sequence[str]) -> dict[str, str]:
        others = [self.hosts[one].number for one in names if one != name]
        return {one: DEVICE for number in others for one in ranges(number)}

    def _why(self, names: Sequence[str]) -> str:
        told = [f"keys: {self.kube.keys()}"]
        for name in names:
            log = [one["message"] for one in self.hosts[name].log()[-5:]]
            told.append(f"{name}: {self.peers(name)}, {self.routes(name)}, {log}")
        return "\n".join(told)

    def reaches(self, name: str, other: str) -> bool:
        """Tell whether the pod of a node gets answers from that of another, by both families."""
        client, server = self.pods[name], self.pods[other]
        return all(self.pings(client, address) for address in server.addresses)

    def pings(self, client: Pod, address: str, *options: str) -> bool:
        """Tell whether an address answers a pod."""
        words = ("ping", "-n", "-c1", "-W20", *options, address)
        return self.machine.try_command(client.netns, *words).returncode == 0

    def close(self) -> None:
        """End all of it."""
        for host in self.hosts.values():
            host.close()
        self.kube.close()
