"""The experiments: each fills some rows, with the columns interleaved round by round."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_network
from itertools import count
from pathlib import Path

from bench import growth, iperf3, netavark, networks
from bench.columns import Batch, BenchError, Call, Column, Floor, empty, sh
from bench.networks import Attachment, Network, Variant
from bench.samples import ENGINE, FLOOR, NETAVARK, ONE_SHOT, REFERENCE, Row
from plugins import TYPES

AT_ONCE = (1, 8, 32)
LEASES = (0, 1_000, 10_000, 60_000)
_ADDRESSES = (1 << 16) - 3  # addresses of a /16 for containers
SLOW = (
    *("at-once-32", "leases-10000", "leases-60000", "leases-one-free", "leases-64", "growth"),
    *("routes-10000", "portmap-range", "portmap-scattered"),
)
ON_MASTER = ("macvlan", "ipvlan", "vlan")
_MEGABYTES = 64  # takes less than a tenth of a second
_CIDRS = count(1)


@dataclass
class Bench:
    """One run: its columns, and the rows so far."""

    columns: Sequence[Column]
    floor: Path
    cnitool: Path
    rounds: int
    peer: Column | None = None  # netavark's
    rows: dict[str, Row] = field(default_factory=dict)
    _ids: Iterator[int] = field(default_factory=count)

    def row(self, key: str, title: str, unit: str = "ms") -> Row:
        """Return a row; create it if it is new."""
        return self.rows.setdefault(key, Row(key, title, unit))

    def turns(
        self, what: str, share: float = 1.0, *, with_peer: bool = False
    ) -> Iterator[list[Column]]:
        """Yield the columns for each round, another first each time; show progress.

        `share` is that of the run's rounds, for what takes long.
        """
        columns = [*self.columns, *([self.peer] if with_peer and self.peer else [])]
        rounds = max(1, round(self.rounds * share))
        for number in range(rounds):
            progress(f"{what}: round {number + 1} of {rounds}", last=False)
            first = number % len(columns)
            yield [*columns[first:], *columns[:first]]
        progress(f"{what}: done")

    def attachment(self, network: Network, container: int) -> Attachment:
        """Return a new attachment, in a container's namespace."""
        number = next(self._ids)
        return Attachment(
            network, f"/run/netns/c{container}", f"{number:064x}", 20000 + 10 * container
        )


def progress(text: str, *, last: bool = True) -> None:
    """Show the progress: on a terminal in one line, which `last` completes."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}" + ("\n" if last else ""))
    elif last:
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def prepare() -> None:
    """Make the namespaces that all columns share; call it before the columns are made."""
    for number in range(max(AT_ONCE)):
        sh(f"ip netns add c{number}")
    for resident in ("resident0", "resident1", "resident2", "resident3"):
        sh(f"ip netns add {resident}")
    growth.prepare()


def warm_up(column: Column) -> None:
    """Run one ADD and DEL. Raises BenchError if one fails."""
    attachment = Attachment(Network("warm", column.name, column.bin_dir), "/run/netns/c0", "warm")
    for command in ("ADD", "DEL"):
        run_chain(column, [attachment], command)
    sh(f"ip link delete {attachment.network.bridge}")


def experiments(types: Sequence[str] = TYPES) -> dict[str, Callable[[Bench], None]]:
    """Return every experiment by name, in the order of the table."""
    found: dict[str, Callable[[Bench], None]] = {
        "first": first_container,  # first, while the host is still empty
        "version": version,
        "loopback": loopback,
        **{kind: partial(on_master, kind=kind) for kind in ON_MASTER},
        "host-device": host_device,
    }
    for key, (title, variant) in _variants(types).items():
        found[key] = partial(attach, key=key, title=title, variant=variant)
    found["throughput"] = throughput
    found["cnitool"] = by_cnitool
    for ports in netavark.PORTS if "portmap" in types else ():
        found[f"netavark-{ports}"] = partial(beside_netavark, ports=ports)
    for number in AT_ONCE:
        found[f"at-once-{number}"] = partial(at_once, number=number)
    found["interpreter"] = interpreter
    found["growth"] = growth.growth
    for present in LEASES:
        share = 0.25 if present > 10_000 else 0.5
        among = Leases(f"{present}", f"{present:,} leases present", present, share=share)
        found[f"leases-{present}"] = partial(leases, among=among)
    for among in (
        Leases("one-free", "one address free in a /16", _ADDRESSES - 1, share=0.25),
        Leases("64", "60,000 leases in an IPv6 /64", 60_000, "fd00:40::/64", share=0.25),
    ):
        found[f"leases-{among.key}"] = partial(leases, among=among)
    return found


def lacks(name: str) -> bool:
    """Tell whether this kernel lacks the kind of interface that an experiment is about."""
    if name not in ON_MASTER:
        return False
    sh("ip link add probe0 type bridge")
    try:
        sh(f"ip link add link probe0 name probe1 type {name}{' id 5' if name == 'vlan' else ''}")
    except BenchError:
        return True
    finally:
        sh("ip link delete probe0")  # and what is on it
    return False


def _variants(types: Sequence[str]) -> dict[str, tuple[str, Variant]]:
    found = {
        "plain": ("", Variant()),
        "dual": (", dual stack", Variant(dual=True)),
        "masq": (", masquerade", Variant(masquerade="iptables")),
        "masq-nft": (", masquerade (reference: nftables)", Variant(masquerade="nftables")),
        "masq-dual": (", masquerade, dual stack", Variant(dual=True, masquerade="iptables")),
        "routes": (", 1,000 routes", Variant(routes=1_000)),
        "routes-10000": (", 10,000 routes", Variant(routes=10_000)),
    }
    for ports in (0, 4, 100) if "portmap" in types else ():
        variant = Variant(masquerade="iptables", ports=ports)
        found[f"portmap-{ports}"] = (f", masquerade, portmap with {ports} ports", variant)
    if "portmap" in types:
        for key, title, ports, in_row in (
            ("range", "a range of 10,000 ports", 10_000, True),
            ("scattered", "1,000 scattered ports", 1_000, False),
        ):
            variant = Variant(masquerade="iptables", ports=ports, in_row=in_row)
            found[f"portmap-{key}"] = (f", masquerade, portmap with {title}", variant)
    return found


# --- the experiments ---


def version(bench: Bench) -> None:
    """VERSION of bridge."""
    row = bench.row("version", "VERSION")
    for turn in bench.turns("VERSION"):
        for column in turn:
            attachment = bench.attachment(Network("version", column.name, column.bin_dir), 0)
            environ = networks.environment("VERSION", attachment, column.bin_dir)
            call = Call(column.bin_dir / "bridge", environ, '{"cniVersion":"1.0.0"}')
            row.add(column.name, column.run([call]).outcomes[0].wall_ms)


def loopback(bench: Bench) -> None:
    """ADD of loopback; its DEL is not measured."""
    row = bench.row("loopback.add", "loopback ADD")
    conf = json.dumps({"cniVersion": networks.VERSION, "name": "lo", "type": "loopback"})
    for turn in bench.turns("loopback"):
        for column in turn:
            attachment = bench.attachment(Network("lo", column.name, column.bin_dir), 0)
            for command in ("ADD", "DEL"):
                environ = networks.environment(command, attachment, column.bin_dir)
                environ["CNI_IFNAME"] = "lo"
                call = Call(column.bin_dir / "loopback", environ, conf)
                batch = column.run([call])
                if command == "ADD":
                    row.add(column.name, batch.outcomes[0].wall_ms)


def on_master(bench: Bench, kind: str) -> None:
    """ADD and DEL of macvlan, ipvlan or vlan with host-local, all columns on one master."""
    rows = {
        command: bench.row(f"{kind}.{command.lower()}", f"{kind} {command}")
        for command in ("ADD", "DEL")
    }
    variant = Variant(type=kind, master="below0")
    sh(f"ip link add {variant.master} type bridge")
    sh(f"ip link set {variant.master} up")
    for turn in bench.turns(kind):
        for column in turn:
            network = Network(kind, column.name, column.bin_dir, variant)
            attachment = bench.attachment(network, 0)
            for command, row in rows.items():
                (batch,) = run_chain(column, [attachment], command)
                row.add(column.name, batch.wall_ms)
    sh(f"ip link delete {variant.master}")


def host_device(bench: Bench) -> None:
    """ADD and DEL of host-device with host-local, all columns with one device in turn."""
    rows = {
        command: bench.row(f"host-device.{command.lower()}", f"host-device {command}")
        for command in ("ADD", "DEL")
    }
    variant = Variant(device="lent0")
    sh(f"ip link add {variant.device} type veth peer name lent1")
    sh("ip link set lent1 up")
    for turn in bench.turns("host-device"):
        for column in turn:
            # As a host has it in use; the reference's DEL leaves it bare and down.
            sh(f"ip link set {variant.device} up")
            sh(f"ip address replace 10.19.0.1/24 dev {variant.device}")
            attachment = bench.attachment(
                Network("host-device", column.name, column.bin_dir, variant), 0
            )
            for command, row in rows.items():
                (batch,) = run_chain(column, [attachment], command)
                row.add(column.name, batch.wall_ms)
    sh(f"ip link delete {variant.device}")


def attach(bench: Bench, key: str, title: str, variant: Variant) -> None:
    """ADD and DEL of one container, while another one stays attached."""
    rows = {
        command: bench.row(f"{key}.{command.lower()}", f"bridge {command}{title}")
        for command in ("ADD", "DEL")
    }
    with _residents(bench, key, variant), _floor(bench, variant) as floor:
        for turn in bench.turns(f"bridge{title}", 0.1 if variant.is_large else 1.0):
            for column in _measured(turn, variant):
                network = Network(key, column.name, column.bin_dir, variant)
                attachment = bench.attachment(network, 0)
                for command, row in rows.items():
                    batches = run_chain(column, [attachment], command)
                    row.add(column.name, sum(batch.wall_ms for batch in batches))
                    if command == "ADD":
                        _add_costs(bench, row, column, batches)
            if floor and not (variant.masquerade or variant.ports or variant.routes):
                rows["ADD"].add(FLOOR, _floor_add(floor, variant))
                rows["DEL"].add(FLOOR, floor.ms("del", "floor"))


def first_container(bench: Bench) -> None:
    """ADD of the first container on an empty host: it makes bridge and base chains."""
    row = bench.row("first.add", "bridge ADD, masquerade, first container on an empty node")
    for turn in bench.turns(row.title, 0.5):
        for column in turn:
            network = Network("first", column.name, column.bin_dir, Variant(masquerade="iptables"))
            attachment = bench.attachment(network, 0)
            row.add(column.name, run_chain(column, [attachment], "ADD")[0].wall_ms)
            run_chain(column, [attachment], "DEL")
            sh(f"ip link delete {network.bridge}")
            sh("nft flush ruleset")
            for directory in ("/run/pycni", "/var/lib/cni"):
                empty(column.path(directory))


def at_once(bench: Bench, number: int) -> None:
    """ADDs of `number` containers at a time, then their DELs."""
    key, title = f"at-once-{number}", f"{number} at a time"
    rows = {
        command: bench.row(f"{key}.{command.lower()}", f"bridge {command}, {title}", "per second")
        for command in ("ADD", "DEL")
    }
    cpu = bench.row(f"{key}.cpu", f"bridge ADD and DEL, {title}", "ms CPU")
    with _residents(bench, key, Variant()), _floor(bench, Variant()) as floor:
        for turn in bench.turns(title, 1.0 if number == 1 else 0.3):
            for column in turn:
                network = Network(key, column.name, column.bin_dir)
                group = [bench.attachment(network, container) for container in range(number)]
                batches = []
                for command, row in rows.items():
                    (batch,) = run_chain(column, group, command)
                    walls = [outcome.wall_ms for outcome in batch.outcomes]
                    row.add(column.name, number * 1000 / batch.wall_ms, walls)
                    batches.append(batch)
                cpu.add(column.name, _cpu_ms(batches))
            prefix = Network("floor", FLOOR, Path()).prefix4
            added = floor.ms("adds", str(number), "many", "/run/netns/c", prefix)
            rows["ADD"].add(FLOOR, number * 1000 / added)
            rows["DEL"].add(FLOOR, number * 1000 / floor.ms("dels", str(number), "many"))


def interpreter(bench: Bench) -> None:
    """The interpreter alone, started and ended: the least of any process of ours."""
    number = max(AT_ONCE)
    alone = bench.row("interpreter.one", "bare interpreter")
    row = bench.row("interpreter", f"bare interpreter, {number} at a time", "per second")
    call = Call(Path(sys.executable).resolve(), {}, arguments=("-I", "-S", "-c", "pass"))
    for turn in bench.turns(row.title, 0.3):
        for column in turn:
            if column.name == ONE_SHOT:
                alone.add(column.name, column.run([call]).wall_ms)
                batch = column.run([call] * number)
                walls = [outcome.wall_ms for outcome in batch.outcomes]
                row.add(column.name, number * 1000 / batch.wall_ms, walls)


def throughput(bench: Bench) -> None:
    """One TCP connection from container to container, over bridge and veth pairs that ADD made."""
    rows = {
        options: bench.row(f"throughput.{key}", f"iperf3{title}, container to container", "Gbit/s")
        for key, title, options in (("copy", "", ()), ("sendfile", " -Z", ("--zerocopy",)))
    }
    with ExitStack() as stack:
        ends = {
            column.name: stack.enter_context(_iperf3_pair(bench, column, 2 * number))
            for number, column in enumerate(bench.columns)
        }
        for turn in bench.turns("iperf3", 1.5):
            for options, row in rows.items():
                for column in turn:
                    client, address = ends[column.name]
                    sample = iperf3.gbit_per_second(client, address, _MEGABYTES, *options)
                    row.add(column.name, sample)


@contextmanager
def _iperf3_pair(bench: Bench, column: Column, first: int) -> Iterator[tuple[str, str]]:
    """Attach two containers to a column's bridge; yield the client's name and server's address."""
    network = Network("throughput", column.name, column.bin_dir)
    pair = [bench.attachment(network, first), bench.attachment(network, first + 1)]
    run_chain(column, pair, "ADD")
    address = pair[1].result["ips"][0]["address"].partition("/")[0]
    with iperf3.serving(f"c{first + 1}"):
        yield f"c{first}", address
    run_chain(column, pair, "DEL")
    sh(f"ip link delete {network.bridge}")


def beside_netavark(bench: Bench, ports: int) -> None:
    """ADD and DEL of a masqueraded container with so many host ports; setup and teardown beside."""
    key, title = f"netavark-{ports}", f"masquerade, {ports} host ports, beside netavark"
    variant = Variant(masquerade="iptables", ports=ports or None)
    rows = {
        command: bench.row(f"{key}.{command.lower()}", f"bridge {command}, {title}")
        for command in ("ADD", "DEL")
    }
    with _residents(bench, key, variant), _resident_of_netavark(bench, key, variant):
        for turn in bench.turns(title, 0.5, with_peer=True):
            for column in turn:
                network = Network(key, column.name, column.bin_dir, variant)
                attachment = bench.attachment(network, 0)
                for command, row in rows.items():
                    if column is bench.peer:
                        batches = [column.run([netavark.call(command, attachment)])]
                    else:
                        batches = run_chain(column, [attachment], command)
                    row.add(column.name, sum(batch.wall_ms for batch in batches))


@contextmanager
def _resident_of_netavark(bench: Bench, key: str, variant: Variant) -> Iterator[None]:
    """Keep one container on netavark's network, which goes with the last one."""
    if bench.peer is None:
        yield
        return
    network = Network(key, NETAVARK, Path(), variant)
    resident = Attachment(network, "/run/netns/resident3", f"{1 << 32:064x}", 31000)
    bench.peer.run([netavark.call("ADD", resident)])
    yield
    bench.peer.run([netavark.call("DEL", resident)])


def by_cnitool(bench: Bench) -> None:
    """The same ADD and DEL by cnitool, its own start included."""
    rows = {
        command: bench.row(f"cnitool.{command}", f"bridge {command.upper()}, by cnitool")
        for command in ("add", "del")
    }
    directory = Path("/etc/cni")
    with _residents(bench, "cnitool", Variant()):
        for turn in bench.turns("by cnitool", 0.5):
            for column in turn:
                network = Network("cnitool", column.name, column.bin_dir)
                (directory / "10.conflist").write_text(json.dumps(network.list()))
                attachment = bench.attachment(network, 0)
                for command, row in rows.items():
                    call = networks.cnitool_call(bench.cnitool, command, attachment, directory)
                    row.add(column.name, column.run([call]).outcomes[0].wall_ms)


@dataclass(frozen=True)
class Leases:
    """The number of other leases and their subnet; `share` is the part of the run's rounds."""

    key: str
    title: str
    present: int
    subnet: str = "10.40.0.0/16"
    share: float = 0.5


def leases(bench: Bench, among: Leases) -> None:
    """ADD, CHECK and DEL of host-local among leases of other containers."""
    rows = {
        command: bench.row(
            f"leases-{among.key}.{command.lower()}", f"host-local {command}, {among.title}"
        )
        for command in ("ADD", "CHECK", "DEL")
    }
    network = f"leases{among.key}"
    for column in bench.columns:
        progress(f"{among.title}: preparing {column.name}", last=False)
        store = column.path(f"/var/lib/cni/networks/{network}")
        store.mkdir(parents=True)
        _write_leases(store, among)
        for command in ("ADD", "DEL"):  # not measured: the first call may read all leases
            column.run(
                [networks.lease_call(column, command, network, subnet=among.subnet, result={})]
            )
    for turn in bench.turns(among.title, among.share):
        for column in turn:
            result: dict[str, object] = {}
            for command, row in rows.items():
                call = networks.lease_call(
                    column, command, network, subnet=among.subnet, result=result
                )
                (outcome,) = column.run([call]).outcomes
                row.add(column.name, outcome.wall_ms)
                result = json.loads(outcome.output) if command == "ADD" else result
    for column in bench.columns:
        empty(column.path("/var/lib/cni/networks"))


# --- their parts ---


def run_chain(column: Column, group: Sequence[Attachment], command: str) -> list[Batch]:
    """Run ADD or DEL of attachments side by side, plugin after plugin of the chain."""
    chains = [
        one.add_calls() if command == "ADD" else one.delete_calls() for one in group
    ]  # one for each attachment
    batches = []
    for step in zip(*chains, strict=True):
        batch = column.run([part.call() for part in step])
        batches.append(batch)
        if command == "ADD":
            for part, outcome in zip(step, batch.outcomes, strict=True):
                part.attachment.result = json.loads(outcome.output)
    return batches


def _measured(columns: Sequence[Column], variant: Variant) -> list[Column]:
    return [one for one in columns if variant.with_reference or one.name != REFERENCE]


def _add_costs(bench: Bench, row: Row, column: Column, batches: Sequence[Batch]) -> None:
    """Add CPU and memory of the calls of one chain."""
    peak = max(one.peak_mb for batch in batches for one in batch.outcomes)
    if column.name == ENGINE:
        peak = max(peak, column.engine_peak_mb())
    bench.row(f"{row.key}.cpu", row.title, "ms CPU").add(column.name, _cpu_ms(batches))
    bench.row(f"{row.key}.memory", row.title, "MB peak").add(column.name, peak)


def _cpu_ms(batches: Sequence[Batch]) -> float:
    """Return the time of processors, the engine's included."""
    return sum(batch.engine_ms + sum(one.cpu_ms for one in batch.outcomes) for batch in batches)


@contextmanager
def _residents(bench: Bench, key: str, variant: Variant) -> Iterator[None]:
    """Keep one container on each column's network; remove everything afterwards."""
    groups = []
    if not variant.with_reference:  # the resident's ports are not what is measured
        variant = replace(variant, ports=4, in_row=False)
    for number, column in enumerate(bench.columns):
        network = Network(key, column.name, column.bin_dir, variant)
        # Host ports of its own: the columns share the kernel, but not the records of their owners.
        resident = Attachment(
            network, f"/run/netns/resident{number}", f"resident{number}", 30000 + 100 * number
        )
        run_chain(column, [resident], "ADD")
        groups.append((column, resident))
    yield
    for column, resident in groups:
        run_chain(column, [resident], "DEL")
        sh(f"ip link delete {resident.network.bridge}")


@contextmanager
def _floor(bench: Bench, variant: Variant) -> Iterator[Floor]:
    """Run the floor's program, on a bridge with gateway addresses and one resident container."""
    network = Network("floor", FLOOR, Path(), variant)
    sh(f"ip link add {network.bridge} type bridge")
    sh(f"ip address add {network.prefix4}.0.1/16 dev {network.bridge}")
    sh(f"ip address add {network.prefix6}::1/64 dev {network.bridge} nodad")
    sh(f"ip link set {network.bridge} up")
    floor = Floor(bench.floor, network.bridge)
    _floor_add(floor, variant, "resident", "/run/netns/resident3")
    yield floor
    floor.ms("del", "resident")
    floor.close()
    sh(f"ip link delete {network.bridge}")


def _floor_add(
    floor: Floor, variant: Variant, name: str = "floor", netns: str = "/run/netns/c0"
) -> float:
    network = Network("floor", FLOOR, Path(), variant)
    host = 256 + next(_CIDRS) % 60_000
    words = [f"{network.prefix4}.{host // 256}.{host % 256}/16", f"{network.prefix4}.0.1"]
    if variant.dual:
        words += [f"{network.prefix6}::{host:x}/64", f"{network.prefix6}::1"]
    return floor.ms("add", name, netns, *words)


def _write_leases(store: Path, among: Leases) -> None:
    """Write leases as the reference does: from .2 on, each of another container."""
    gateway = ip_network(among.subnet)[1]
    last = str(gateway)
    for host in range(1, among.present + 1):
        last = str(gateway + host)
        (store / last).write_text(f"{host:064x}\r\neth0")
    (store / "last_reserved_ip.0").write_text(last)
