"""Many calls at once on one pretend host: processes, threads and both host-locals."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from cni_common.node import liveness as recorded
from cni_common.node.host import STATE_DIR
from cni_common.serve.protocol import Reply
from plugins.host_local import collect, expiry, lease
from tests.faults.inprocess import Fault, faulty
from tests.kernel.sweeps import faults, rehearsal
from tests.machine import (
    CNI_BIN,
    REFERENCE_BIN,
    Json,
    Machine,
    TestHost,
    addresses_of,
    error_of,
)
from tests.scope import ALL

CLIENTS = 16
CROSSING_SECONDS = 0.3  # more than an ADD takes that nothing keeps
TIMES = 3 if ALL else 1  # as many rounds of those clients that start no process
GO_FIRST = f"{REFERENCE_BIN}:{CNI_BIN}"

Call = Callable[..., Json]


class Claims:
    """The addresses that clients hold at this moment."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._lock = threading.Lock()

    @contextmanager
    def of(self, result: Json) -> Iterator[None]:
        """Hold the addresses of `result`, which nobody else may hold."""
        addresses = set(addresses_of(result))
        with self._lock:
            assert not addresses & self._held, "given out twice"
            self._held |= addresses
        yield
        with self._lock:
            self._held -= addresses


@pytest.fixture(autouse=True)
def _worker_for_each_client(machine: Machine) -> None:
    """Have an engine serve all clients at once, however busy the machine is."""
    machine.workers = CLIENTS


@pytest.fixture
def node(machine: Machine) -> Machine:
    """A pretend host whose records are those of the executables: they have only one place."""
    machine.state_dir = STATE_DIR
    return machine


def network(machine: Machine, **keys: object) -> Json:
    """Return a dual-stack configuration that uses everything shared."""
    ipam = {
        "type": "host-local",
        "dataDir": machine.data_dir,
        "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return machine.network(**{"ipMasq": True, "macspoofchk": True, "ipam": ipam, **keys})


def in_process(machine: Machine) -> Call:
    """Return a call of bridge in this process."""

    return partial(machine.ok, "bridge")


def by_executable(machine: Machine) -> Call:
    """Return a call of the bridge executable."""

    def call(command: str, config: Json, netns: str, **attachment: str) -> Json:
        done = machine.execute(CNI_BIN / "bridge", command, config, netns, **attachment)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout) if done.stdout else {}

    return call


def at_once(jobs: Sequence[Callable[[], object]]) -> None:
    """Run each job in a thread of its own, all from the same moment on; raise what they raise."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> None:
        start.wait()
        job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(run, job) for job in jobs]:
            future.result()


def client(
    call: Call, config: Json, container: str, claims: Claims, *, rounds: int, **attachment: str
) -> Callable[[], None]:
    """Return a job that attaches, checks and detaches a container again and again."""

    def job() -> None:
        for _ in range(rounds):
            result = call("ADD", config, container, **attachment)
            with claims.of(result):
                call("CHECK", {**config, "prevResult": result}, container, **attachment)
            call("DEL", {**config, "prevResult": result}, container, **attachment)

    return job


def assert_empty(machine: Machine) -> None:
    """Demand that only the bridge is left, and no rule, lease or record."""
    assert [link["ifname"] for link in machine.ip(machine.host, "link")] == ["lo", "br0"]
    assert [entry for entry in machine.nft() if "CNI-" in str(entry) or "pycni" in str(entry)] == []
    assert leases(machine) == []
    assert records(machine) == []


def leases(machine: Machine) -> list[str]:
    """Return the addresses that have a lease."""
    names = os.listdir(f"{machine.data_dir}/{machine.name}")
    return [name for name in names if not name.startswith(("last_reserved_ip.", "lock"))]


def records(machine: Machine) -> list[Path]:
    """Return the files of the network's records."""
    found = []
    for path in Path(machine.state_dir, "attachments").iterdir():
        try:
            if machine.name in path.read_text():
                found.append(path)
        except FileNotFoundError:
            continue  # of a test beside this one
    return found


def make_old(machine: Machine) -> None:
    """Make the records and leases of the network older than any time of grace."""
    for path in [*records(machine), *Path(machine.data_dir, machine.name).iterdir()]:
        os.utime(path, (0, 0))


@pytest.mark.both_edges
@pytest.mark.timeout(300)
def test_storm(node: Machine) -> None:
    """16 clients, processes and threads, race from an empty host on: no error, nothing left."""
    config = network(node)
    claims = Claims()
    jobs = [
        client(
            by_executable(node) if number % 2 else in_process(node),
            *(config, node.container(), claims),
            rounds=1 if number % 2 else 4 * TIMES,
            containerid=f"c{number}",
        )
        for number in range(CLIENTS)
    ]

    at_once(jobs)

    assert_empty(node)


@pytest.mark.timeout(300)
def test_storm_with_both_host_locals(node: Machine) -> None:
    """Half of the clients have the Go host-local first in CNI_PATH, all share one store."""
    config = network(node)
    claims = Claims()
    jobs = [
        client(
            by_executable(node) if number % 4 == 0 else in_process(node),
            *(config, node.container(), claims),
            rounds=1 if number % 4 == 0 else 3 * TIMES,
            containerid=f"c{number}",
            path=GO_FIRST if number % 2 else str(CNI_BIN),
        )
        for number in range(CLIENTS)
    ]

    at_once(jobs)

    assert_empty(node)


@pytest.mark.timeout(300)
def test_storm_with_iptables(machine: Machine) -> None:
    """Clients that masquerade by iptables do not disturb each other, nor those with nftables."""
    claims = Claims()
    jobs = [
        client(
            in_process(machine),
            network(machine, ipMasqBackend="nftables" if number % 4 else "iptables"),
            *(machine.container(), claims),
            rounds=4,
            containerid=f"c{number}",
        )
        for number in range(CLIENTS)
    ]

    at_once(jobs)

    assert_empty(machine)


@pytest.mark.both_edges
@pytest.mark.timeout(300)
def test_one_attachment_from_all_sides(machine: Machine) -> None:
    """Calls for one attachment that overlap succeed, or are refused in words that fit."""
    config = network(machine)
    container = machine.container()
    won: list[str] = []

    def add() -> None:
        for _ in range(10):
            reply = machine.invoke("bridge", "ADD", config, container)
            if reply.exit_code:
                assert error_of(reply.stdout)["code"] in (4, 11), reply.stdout
            else:
                won.append("")

    def delete() -> None:
        for _ in range(10):
            machine.ok("bridge", "DEL", config, container)

    at_once([add, add, add, delete, delete])

    assert won
    machine.ok("bridge", "DEL", config, container)
    assert machine.link(container, "eth0") is None
    assert_empty(machine)


@pytest.fixture
def impatient_gc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have GC not spare what is young."""
    for module in (recorded, collect, expiry, lease):
        monkeypatch.setattr(module, "GRACE_SECONDS", -1)


def is_in_kernel(what: str) -> bool:
    """Tell whether an operation is a netlink message or a command: locks guard the files."""
    return not what.startswith(("open", "run NetNS", "sysctl", "disk")) and "record" not in what


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("command", "intrusion", "backend"),
    [
        ("ADD", ["ADD"], "nftables"),
        ("ADD", ["DEL"], "nftables"),
        ("ADD", ["ADD", "DEL"], "nftables"),
        ("ADD", ["DEL"], "iptables"),
        ("DEL", ["ADD"], "nftables"),
        ("DEL", ["DEL"], "nftables"),
        ("DEL", ["ADD", "DEL"], "nftables"),
        ("DEL", ["ADD"], "iptables"),
        ("ADD", ["GC"], "nftables"),
        ("DEL", ["GC"], "nftables"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
@pytest.mark.usefixtures("impatient_gc")
def test_at_any_moment_of_another_call(
    machine: Machine, command: str, intrusion: list[str], backend: str
) -> None:
    """Before whichever step of a call another comes in: both do what they are asked for.

    GC does not know the container: that the ADD is at work, or that the namespace lives, must
    keep it.
    """
    config = network(machine, ipMasqBackend=backend, **{"cni.dev/valid-attachments": []})
    container, other = machine.container(), machine.container()

    def call(which: str, netns: str, host: TestHost | None = None) -> None:
        containerid = "c1" if netns == container else "other"
        machine.ok("bridge", which, config, netns, host=host, containerid=containerid)

    def intrude() -> None:
        for which in intrusion:
            call(which, other)

    once = rehearsal(machine, "bridge", command, config, container)
    for fault in faults(once, act=intrude, only=is_in_kernel):
        machine.try_command(machine.host, "ip", "link", "delete", "br0")
        for netns, commands in ((container, [command]), (other, intrusion)):
            if commands[0] == "DEL":
                call("ADD", netns)
        with faulty(machine, fault) as host:
            call(command, container, host)
        if not fault.happened:
            break
        for netns, commands in ((container, [command]), (other, intrusion)):
            if commands[-1] == "ADD":
                assert len(machine.addresses(netns, "eth0")) == 2, fault.what
                call("DEL", netns)
        assert_empty(machine)

    assert len(fault.done) > 8


@pytest.mark.without_engine(reason="the call that fails is answered in this process")
@pytest.mark.timeout(300)
@pytest.mark.full_kernel
def test_vlan_interface_made_by_two(machine: Machine) -> None:
    """The host's interface in a VLAN is shared: the slower of two ADDs uses that of the other."""
    config = machine.network(vlan=5)
    containers = {"c1": machine.container(), "c2": machine.container()}
    add = partial(machine.ok, "bridge", "ADD", config)
    other = partial(add, containers["c2"], containerid="c2")

    for number in range(1, 100):
        for name in ("br0", "br0.5"):
            machine.try_command(machine.host, "ip", "link", "delete", name)
        fault = Fault(number, act=other, only=lambda what: "br0.5" in what or "VLAN" in what)
        with faulty(machine, fault) as host:
            add(containers["c1"], host=host, containerid="c1")
        if not fault.happened:
            break
        assert machine.addresses(machine.host, "br0.5") == ["10.9.0.1/24"], fault.what
        vlans = machine.command(machine.host, "bridge", "-j", "vlan", "show")
        ports = [entry for entry in json.loads(vlans) if entry["ifname"].startswith("veth")]
        assert [[vlan["vlan"] for vlan in port["vlans"]] for port in ports] == [[5]] * 3
        for containerid, netns in containers.items():
            machine.ok("bridge", "DEL", config, netns, containerid=containerid)

    assert number > 4


@pytest.mark.timeout(300)
def test_gc_beside_add_and_del(machine: Machine) -> None:
    """GC at any moment keeps what is valid, alive or young, and removes what is none of these."""
    config = network(machine)
    valid = [{"containerID": "valid", "ifname": "eth0"}]
    containers = {name: machine.container() for name in ("valid", "unlisted", "dead")}
    results = {
        name: machine.ok("bridge", "ADD", config, netns, containerid=name)
        for name, netns in containers.items()
    }
    machine.end(containers.pop("dead"))
    make_old(machine)
    claims = Claims()
    churn = [
        client(
            *(in_process(machine), config, machine.container(), claims),
            rounds=10,
            containerid=f"c{number}",
        )
        for number in range(6)
    ]

    def collect() -> None:
        for _ in range(30):
            machine.ok("bridge", "GC", {**config, "cni.dev/valid-attachments": valid})

    at_once([collect, *churn])

    for name, netns in containers.items():
        prev = {"prevResult": results[name]}
        machine.ok("bridge", "CHECK", {**config, **prev}, netns, containerid=name)
    kept = sorted(address for name in containers for address in addresses_of(results[name]))
    assert sorted(leases(machine)) == kept
    assert sorted(machine.masqueraded()) == kept
    assert len(records(machine)) == 2 * len(containers)


def crossing(machine: Machine, plugin: str, container: str) -> Json:
    """Return the configuration of a plugin for a container, behind that of a bridge if chained."""
    config = network(machine, type=plugin)
    if plugin in ("bridge", "host-local"):
        return config
    machine.ok("bridge", "ADD", network(machine), container)
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    previous = {"interfaces": [], "ips": [{"address": "10.9.0.9/24"}]}
    return {**config, "prevResult": previous, "runtimeConfig": {"portMappings": ports}}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("plugin", ["bridge", "host-local", "portmap", "firewall"])
def test_add_while_a_del_finds_no_record(machine: Machine, plugin: str) -> None:
    """Before whichever step of a DEL without a record an ADD of the attachment comes in.

    It waits, or is refused for the moment; what it says that it has made is there, unless the DEL
    has taken away all of it.
    """
    container = machine.container()
    config = crossing(machine, plugin, container)
    machine.make_host().records.probe()  # makes the directory
    before = len(records(machine)), machine.leases()

    def delete(fault: Fault) -> None:
        with faulty(machine, fault) as host:
            machine.ok(plugin, "DEL", config, container, host=host)

    with ThreadPoolExecutor(1) as pool:
        adding: list[Future[Reply]] = []

        def cross() -> None:
            adding.append(pool.submit(machine.invoke, plugin, "ADD", config, container))
            wait(adding[-1:], CROSSING_SECONDS)

        for fault in faults(delete, act=cross):
            delete(fault)
            if not fault.happened:
                break
            reply = adding[-1].result()
            if reply.exit_code:
                assert error_of(reply.stdout)["code"] == 11, (fault.what, reply.stdout)
            elif len(records(machine)) > before[0]:
                previous = config.get("prevResult") or json.loads(reply.stdout)
                machine.ok(plugin, "CHECK", {**config, "prevResult": previous}, container)
                machine.ok(plugin, "DEL", config, container)
            assert (len(records(machine)), machine.leases()) == before, fault.what

    assert len(fault.done) > 2
