"""Growth: the time of a call with 1,000 attachments on the node, as a multiple of that with one."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Self

from bench import networks
from bench.columns import BenchError, Call, Column, Floor, Outcome, sh
from bench.networks import Attachment, Network
from bench.samples import ENGINE, FLOOR
from cni_common.kernel.netns import OWN, NetNS
from plugins.firewall import cni_forward
from plugins.firewall.filter_tables import APPEND, Edit, NftFilter

if TYPE_CHECKING:
    from pathlib import Path

    from bench.experiments import Bench

MANY = 1_000
_PER_BRIDGE = 500  # a bridge has 1,023 ports
_PER_NETNS = 50
_SHARE = 0.3  # of the run's rounds
# By the name of the network; each plugin's own row, and the chains' sums.
CHAINS = {
    "bridge": ("bridge", "tuning", "bandwidth", "portmap", "firewall"),
    "ptp": ("ptp", "firewall"),
}
SUM = ("bridge", "portmap", "firewall")
# What the kernel does for a plugin in proportion to its neighbours, by the names in `_Kernel`.
KERNEL_PARTS = {
    "bridge": ("bridge",),
    "ptp": ("ptp",),
    "firewall": ("firewall",),
    "chain": ("bridge", "firewall"),
}
ROWS = (*dict.fromkeys(plugin for chain in CHAINS.values() for plugin in chain), "chain")


@dataclass(frozen=True)
class _Spot:
    """One attachment: its chain, the number of its network, and its own."""

    chain: str
    network: int
    number: int


@dataclass
class _Node:
    """The attachments of one column."""

    column: Column
    results: dict[_Spot, networks.Json] = field(default_factory=dict)

    def add(self, spot: _Spot) -> dict[str, float]:
        """Attach, and return the milliseconds of each plugin."""
        self.results[spot] = {}
        spent = {}
        for plugin in CHAINS[spot.chain]:
            outcome = self._run("ADD", plugin, spot)
            self.results[spot] = json.loads(outcome.output)
            spent[plugin] = outcome.wall_ms
        return spent

    def delete(self, spot: _Spot) -> dict[str, float]:
        """Detach, and return the milliseconds of each plugin."""
        plugins = reversed(CHAINS[spot.chain])
        spent = {plugin: self._run("DEL", plugin, spot).wall_ms for plugin in plugins}
        del self.results[spot]
        return spent

    def _run(self, command: str, plugin: str, spot: _Spot) -> Outcome:
        bin_dir = self.column.bin_dir
        network = Network(f"{spot.chain}{spot.network}", self.column.name, bin_dir)
        netns = f"/run/netns/growth{spot.number // _PER_NETNS}"
        attachment = Attachment(network, netns, f"{spot.chain}{spot.number}")
        environ = networks.environment(command, attachment, bin_dir)
        environ["CNI_IFNAME"] = f"{spot.chain[0]}{spot.number}"
        conf: networks.Json = {"cniVersion": networks.VERSION, "name": network.name, "type": plugin}
        conf |= _keys(plugin, spot)
        if self.results[spot]:
            conf["prevResult"] = self.results[spot]
        (outcome,) = self.column.run([Call(bin_dir / plugin, environ, json.dumps(conf))]).outcomes
        return outcome


def _keys(plugin: str, spot: _Spot) -> networks.Json:
    subnet = f"10.{(100 if plugin == 'bridge' else 110) + spot.network}.0.0/16"
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]]}
    ports = [{"hostPort": 10_000 + spot.number, "containerPort": 80, "protocol": "tcp"}]
    keys: dict[str, networks.Json] = {
        "bridge": {
            "bridge": f"growth{spot.network}",
            "isGateway": True,
            "ipMasq": True,
            "ipam": ipam,
        },
        "ptp": {"ipMasq": True, "ipam": ipam},
        "tuning": {"sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "0"}},
        "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 10_000_000},
        "portmap": {"runtimeConfig": {"portMappings": ports}},
    }
    return keys.get(plugin, {})


def growth(bench: Bench) -> None:
    """ADD and DEL of each plugin among 1,000 attachments, by the engine; the kernel's beside it."""
    column = next((one for one in bench.columns if one.name == ENGINE), None)
    if column is None:
        return
    rounds = max(3, round(bench.rounds * _SHARE))
    with _attached(column) as node:
        for chain in CHAINS:
            node.add(_Spot(chain, 0, 0))
        few = _medians(bench, node, rounds)
        for number in range(1, MANY):
            node.add(_Spot("bridge", number // _PER_BRIDGE, number))
            node.add(_Spot("ptp", 0, number))
        many = _medians(bench, node, rounds)
    for (what, command), ms in many.items():
        if what in ROWS:
            title = f"{what} {command}, among 1,000 attachments as a multiple of one"
            row = bench.row(f"growth-{what}.{command.lower()}", title, "times")
            alone = few[what, command]
            row.add(ENGINE, ms / alone)
            parts = [(f"kernel {part}", command) for part in KERNEL_PARTS.get(what, ())]
            more = sum(many[part] - few[part] for part in parts)
            row.add(FLOOR, (alone + max(0, more)) / alone)


@contextmanager
def _attached(column: Column) -> Iterator[_Node]:
    """Give a node, and take everything back from it."""
    node = _Node(column)
    try:
        yield node
    finally:
        for spot in [*node.results]:
            with suppress(BenchError):
                node.delete(spot)
        for network in range(2):
            with suppress(BenchError):
                sh(f"ip link delete growth{network}")


def _medians(bench: Bench, node: _Node, rounds: int) -> dict[tuple[str, str], float]:
    """Return the median milliseconds of each plugin's ADD and DEL, of the chain and the floor."""
    samples: dict[tuple[str, str], list[float]] = {}
    with _Kernel(bench.floor) as kernel:
        for turn in range(rounds):
            for chain in CHAINS:
                spot = _Spot(chain, 0, MANY + turn)
                spent = {"ADD": node.add(spot)}
                if "firewall" in CHAINS[chain]:
                    kernel.measure(turn, samples)  # among the rules of that attachment, too
                spent["DEL"] = node.delete(spot)
                for command, times in spent.items():
                    for plugin, ms in times.items():
                        if chain == "bridge" or plugin == "ptp":
                            samples.setdefault((plugin, command), []).append(ms)
                    if chain == "bridge":
                        whole = sum(times[plugin] for plugin in SUM)
                        samples.setdefault(("chain", command), []).append(whole)
    return {key: statistics.median(found) for key, found in samples.items()}


class _Kernel:
    """The kernel's part of an attachment, asked for directly: interfaces, and firewall's rules."""

    def __init__(self, program: Path) -> None:
        self._pairs = {"bridge": Floor(program, "growth0"), "ptp": Floor(program, "none")}
        self._netns = NetNS(OWN)
        self._table = NftFilter(self._netns, 4)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for floor in self._pairs.values():
            floor.close()
        self._netns.close()

    def measure(self, turn: int, samples: dict[tuple[str, str], list[float]]) -> None:
        """Make each part and remove it; add the milliseconds to the samples."""
        for what, floor in self._pairs.items():
            words = (f"10.100.200.{turn % 250}/16", "10.100.0.1")
            ms = floor.ms("add", "floor", "/run/netns/c0", *words)
            samples.setdefault((f"kernel {what}", "ADD"), []).append(ms)
            samples.setdefault((f"kernel {what}", "DEL"), []).append(floor.ms("del", "floor"))
        lines = cni_forward.lines_of([ip_address(f"10.99.0.{turn % 250}")])
        begun = time.perf_counter()
        handles = self._table.commit([Edit(APPEND, cni_forward.ALLOWED, line) for line in lines])
        made = time.perf_counter()
        self._table.delete_rules(cni_forward.ALLOWED, handles)
        ended = time.perf_counter()
        samples.setdefault(("kernel firewall", "ADD"), []).append((made - begun) * 1000)
        samples.setdefault(("kernel firewall", "DEL"), []).append((ended - made) * 1000)


def prepare() -> None:
    """Make the containers' namespaces; call it before the columns are made."""
    for number in range(-(-2 * MANY // _PER_NETNS)):
        sh(f"ip netns add growth{number}")


def rows() -> Sequence[str]:
    """Return the keys of the rows."""
    return [f"growth-{what}.{command}" for what in ROWS for command in ("add", "del")]
