"""Growth: the time of a call with 1,000 attachments on the node, as a multiple of that with one."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench import networks
from bench.columns import BenchError, Call, Column, Floor, Outcome, sh
from bench.networks import Attachment, Network
from bench.samples import ENGINE, FLOOR

if TYPE_CHECKING:
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
    for number in range(-(-2 * MANY // _PER_NETNS)):
        sh(f"ip netns add growth{number}")
    with _attached(column) as node:
        for chain in CHAINS:
            node.add(_Spot(chain, 0, 0))
        few = _medians(bench, node, rounds)
        for number in range(1, MANY):
            node.add(_Spot("bridge", number // _PER_BRIDGE, number))
            node.add(_Spot("ptp", 0, number))
        many = _medians(bench, node, rounds)
    for (what, command), ms in many.items():
        if what == "floor":
            continue
        title = f"{what} {command}, among 1,000 attachments as a multiple of one"
        row = bench.row(f"growth-{what}.{command.lower()}", title, "times")
        row.add(ENGINE, ms / few[what, command])
        # Only interfaces have a floor; of all other plugins the kernel's part does not grow.
        kernel = ("floor", command)
        row.add(FLOOR, many[kernel] / few[kernel] if what in ("bridge", "ptp", "chain") else 1.0)


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
        for number in range(-(-2 * MANY // _PER_NETNS)):
            sh(f"ip netns delete growth{number}")
        for network in range(2):
            with suppress(BenchError):
                sh(f"ip link delete growth{network}")


def _medians(bench: Bench, node: _Node, rounds: int) -> dict[tuple[str, str], float]:
    """Return the median milliseconds of each plugin's ADD and DEL, of the chain and the floor."""
    samples: dict[tuple[str, str], list[float]] = {}
    floor = Floor(bench.floor, "growth0")
    for turn in range(rounds):
        number = MANY + turn
        for chain in CHAINS:
            spot = _Spot(chain, 0, number)
            spent = {"ADD": node.add(spot), "DEL": node.delete(spot)}
            for command, times in spent.items():
                for plugin, ms in times.items():
                    if chain == "bridge" or plugin == "ptp":
                        samples.setdefault((plugin, command), []).append(ms)
                if chain == "bridge":
                    whole = sum(times[plugin] for plugin in SUM)
                    samples.setdefault(("chain", command), []).append(whole)
        words = (f"10.100.200.{turn % 250}/16", "10.100.0.1")
        ms = floor.ms("add", "floor", "/run/netns/c0", *words)
        samples.setdefault(("floor", "ADD"), []).append(ms)
        samples.setdefault(("floor", "DEL"), []).append(floor.ms("del", "floor"))
    floor.close()
    return {key: statistics.median(found) for key, found in samples.items()}


def rows() -> Sequence[str]:
    """Return the keys of the rows."""
    return [f"growth-{what}.{command}" for what in ROWS for command in ("add", "del")]
