"""Growth: the time of a call with 1,000 attachments on the node, as a multiple of that with one."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Self

from bench import networks
from bench.columns import BenchError, Call, Column, Floor, Outcome, sh
from bench.networks import Attachment, Network
from bench.samples import ENGINE, FLOOR
from cni_common.kernel import nft_table
from cni_common.kernel.netns import OWN, NetNS
from cni_common.kernel.nft_layout import TABLE
from plugins.firewall import cni_forward
from plugins.firewall.filter_tables import APPEND, Edit, NftFilter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.experiments import Bench
    from cni_common.kernel.netlink import Message
    from cni_common.spec.names import Address
    from cni_common.spec.wire import JsonObject

MANY = 1_000
_PER_BRIDGE = 500  # a bridge has 1,023 ports
_PER_NETNS = 50
_SHARE, _ROUNDS_MIN = 0.3, 25  # of the run's rounds; a ratio of two medians needs some samples
# The kernel frees an interface for some ten milliseconds after its deletion, and rules likewise.
_PAUSE_SECONDS = 0.03
# By the name of the network; each plugin's own row, and the chains' sums.
CHAINS = {
    "bridge": ("bridge", "tuning", "bandwidth", "portmap", "firewall"),
    "ptp": ("ptp", "firewall"),
}
SUM = ("bridge", "portmap", "firewall")
# What the kernel does for a plugin in proportion to its neighbours, by the names in `_Kernel`, and
# how often. Of the files in /proc/sys those of the bridge and forwarding; those of both ends are in
# the part of the pair.
KERNEL_PARTS: dict[str, dict[str, int]] = {
    "bridge": {"bridge": 1, "element": 1, "sysctl": 2},
    "ptp": {"ptp": 1, "element": 1, "sysctl": 1},
    "tuning": {"sysctl": 2},
    "portmap": {"element": 1, "sysctl": 2},
    "firewall": {"firewall": 1},
}
KERNEL_PARTS["chain"] = {"bridge": 1, "element": 2, "sysctl": 4, "firewall": 1}
_SUBNETS = {"bridge": 100, "ptp": 110}  # the second bytes of their first networks' addresses
_MAP = "masquerade4"  # of masquerading: cni_common.node.masquerade
_CONTROL = ("loopback", "ADD")
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
    results: dict[_Spot, JsonObject] = field(default_factory=dict)

    def add(self, spot: _Spot, pause: float = 0.0) -> dict[str, float]:
        """Attach, and return the milliseconds of each plugin; `pause`: seconds before each."""
        self.results[spot] = {}
        spent = {}
        for plugin in CHAINS[spot.chain]:
            time.sleep(pause)
            outcome = self._run("ADD", plugin, spot)
            self.results[spot] = json.loads(outcome.output)
            spent[plugin] = outcome.wall_ms
        return spent

    def delete(self, spot: _Spot, pause: float = 0.0) -> dict[str, float]:
        """Detach; otherwise as `add`."""
        spent = {}
        for plugin in reversed(CHAINS[spot.chain]):
            time.sleep(pause)
            spent[plugin] = self._run("DEL", plugin, spot).wall_ms
        del self.results[spot]
        return spent

    def _run(self, command: str, plugin: str, spot: _Spot) -> Outcome:
        bin_dir = self.column.bin_dir
        network = Network(f"{spot.chain}{spot.network}", self.column.name, bin_dir)
        netns = f"/run/netns/growth{spot.number // _PER_NETNS}"
        attachment = Attachment(network, netns, f"{spot.chain}{spot.number}")
        environ = networks.environment(command, attachment, bin_dir)
        environ["CNI_IFNAME"] = f"{spot.chain[0]}{spot.number}"
        conf: JsonObject = {"cniVersion": networks.VERSION, "name": network.name, "type": plugin}
        conf |= _keys(plugin, spot)
        if self.results[spot]:
            conf["prevResult"] = self.results[spot]
        (outcome,) = self.column.run([Call(bin_dir / plugin, environ, json.dumps(conf))]).outcomes
        return outcome

    def control(self) -> float:
        """Return the milliseconds of an ADD of loopback, which has no neighbours."""
        conf = json.dumps({"cniVersion": networks.VERSION, "name": "lo", "type": "loopback"})
        bin_dir = self.column.bin_dir
        attachment = Attachment(
            Network("lo", self.column.name, bin_dir), "/run/netns/c0", "control"
        )
        environ = networks.environment("ADD", attachment, bin_dir) | {"CNI_IFNAME": "lo"}
        return self.column.run([Call(bin_dir / "loopback", environ, conf)]).outcomes[0].wall_ms


def _keys(plugin: str, spot: _Spot) -> JsonObject:
    subnet = f"10.{_SUBNETS[spot.chain] + spot.network}.0.0/16"
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]]}
    ports = [{"hostPort": 10_000 + spot.number, "containerPort": 80, "protocol": "tcp"}]
    keys: dict[str, JsonObject] = {
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
    rounds = max(_ROUNDS_MIN, round(bench.rounds * _SHARE))
    with _attached(column) as node:
        for chain in CHAINS:
            node.add(_Spot(chain, 0, 0))
        few = _medians(bench, node, rounds)
        neighbours = [
            spot
            for number in range(1, MANY)
            for spot in (_Spot("bridge", number // _PER_BRIDGE, number), _Spot("ptp", 0, number))
        ]
        for spot in neighbours:
            node.add(spot)
        many = _medians(bench, node, rounds)
        for spot in neighbours:
            node.delete(spot)
        again = _medians(bench, node, rounds)
    # Minutes later the machine has another speed, with what else it does: that of `_CONTROL` tells.
    few = {key: statistics.mean((ms, again[key])) for key, ms in few.items()}
    speed = many[_CONTROL] / few[_CONTROL]
    many = {key: ms / speed for key, ms in many.items()}
    for (what, command), ms in many.items():
        if what in ROWS:
            title = f"{what} {command}, among 1,000 attachments as a multiple of one"
            row = bench.row(f"growth-{what}.{command.lower()}", title, "times")
            alone = few[what, command]
            row.add(ENGINE, ms / alone)
            parts = KERNEL_PARTS.get(what, {})
            keys = {(f"kernel {part}", command): times for part, times in parts.items()}
            more = sum((many[key] - few[key]) * times for key, times in keys.items())
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
                time.sleep(_PAUSE_SECONDS)
                samples.setdefault(_CONTROL, []).append(node.control())
                spent = {"ADD": node.add(spot, _PAUSE_SECONDS)}
                if "firewall" in CHAINS[chain]:
                    kernel.measure(turn, samples)  # among the rules of that attachment, too
                spent["DEL"] = node.delete(spot, _PAUSE_SECONDS)
                for command, times in spent.items():
                    for plugin, ms in times.items():
                        if chain == "bridge" or plugin == "ptp":
                            samples.setdefault((plugin, command), []).append(ms)
                    if chain == "bridge":
                        whole = sum(times[plugin] for plugin in SUM)
                        samples.setdefault(("chain", command), []).append(whole)
    return {key: statistics.median(found) for key, found in samples.items()}


class _Kernel:
    """The kernel's parts of an attachment, asked for directly.

    The pair, an element in the map of addresses to masquerade, a file in /proc/sys, and the rules
    of firewall.
    """

    def __init__(self, program: Path) -> None:
        self._pairs = {"bridge": Floor(program, "growth0"), "ptp": Floor(program, "none")}
        self._netns = NetNS(OWN)
        self._table = NftFilter(self._netns, 4)
        self._chain = ""  # to which elements lead

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for floor in self._pairs.values():
            floor.close()
        self._netns.close()

    def measure(self, turn: int, samples: dict[tuple[str, str], list[float]]) -> None:
        """Make each part and remove it; add the milliseconds to the samples."""
        addresses = {what: f"10.{_SUBNETS[what]}.200.{turn % 250}" for what in self._pairs}

        def note(what: str, command: str, ms: float) -> None:
            samples.setdefault((f"kernel {what}", command), []).append(ms)

        for what, floor in self._pairs.items():
            time.sleep(_PAUSE_SECONDS)
            gateway = f"10.{_SUBNETS[what]}.0.1"
            spent = floor.ms("attach", "floor0", "/run/netns/c0", f"{addresses[what]}/16", gateway)
            if what == "ptp":
                spent += floor.ms("route", "floor0", f"{gateway}/32", addresses[what])
            note(what, "ADD", spent)
            for command in ("ADD", "DEL"):  # a DEL gives settings back
                note("sysctl", command, floor.ms("sysctl", "net/ipv4/conf/floor0/arp_notify"))
            note(what, "DEL", floor.ms("dels", "1", "floor"))  # until the event, as ours
        time.sleep(_PAUSE_SECONDS)
        for command, message in self._element(ip_address(addresses["bridge"])).items():
            note("element", command, _ms(partial(nft_table.apply, self._netns, [message])))
        time.sleep(_PAUSE_SECONDS)
        lines = cni_forward.lines_of([ip_address(f"10.99.0.{turn % 250}")])
        handles: list[int] = []
        edits = [Edit(APPEND, cni_forward.ALLOWED, line) for line in lines]
        note("firewall", "ADD", _ms(lambda: handles.extend(self._table.commit(edits))))
        delete = partial(self._table.delete_rules, cni_forward.ALLOWED, handles)
        note("firewall", "DEL", _ms(delete))

    def _element(self, address: Address) -> dict[str, Message]:
        """Return what adds and what deletes an element of the map, as masquerading has it."""
        place = _MAP, address.packed
        if not self._chain:
            elements = TABLE.elements(self._netns, place[0])
            self._chain = next(element.chain for element in elements)
        add = TABLE.add_element(*place, goto=self._chain, comment="floor")
        return {"ADD": add, "DEL": TABLE.delete_element(*place)}


def _ms(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return (time.perf_counter() - begun) * 1000


def prepare() -> None:
    """Make the containers' namespaces; call it before the columns are made."""
    for number in range(-(-2 * MANY // _PER_NETNS)):
        sh(f"ip netns add growth{number}")


def rows() -> Sequence[str]:
    """Return the keys of the rows."""
    return [f"growth-{what}.{command}" for what in ROWS for command in ("add", "del")]
