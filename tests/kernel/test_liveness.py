"""Liveness: the action of each caller for ALIVE, GONE and UNKNOWN.

docs/architecture.md has the table below, and a test compares them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

from cni_common.node.liveness import GRACE_SECONDS, State, state_of
from tests.machine import CNI_BIN, ROOT, Json, Machine, addresses_of, error_of, files_below
from tests.mounts import bind, detach

pytestmark = pytest.mark.without_engine("liveness is the same code there")

LIST = "cni.dev/valid-attachments"
OLD = GRACE_SECONDS + 60
ALIVE, GONE, UNKNOWN = State.ALIVE, State.GONE, State.UNKNOWN
POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=1-2-3"

# The action of each caller for a container that it knows only by its record: as words.
TABLE = {
    "GC without a list": ("kept", "removed", "kept"),
    "GC with a list that does not name it": ("kept", "removed", "kept"),
    "GC of host-local without a list": ("kept", "removed", "kept"),
    "GC of host-local with a list that does not name it": ("kept", "removed", "kept"),
    "`pycni reclaim`, twice": ("kept", "removed", "kept"),
    "`pycni audit`": ("not shown", "shown", "lease left to you"),
    "ADD by nftables that wants its host port": ("refused", "taken over", "refused"),
    "ADD by iptables that wants its host port": ("refused", "taken over", "refused"),
    "ADD of the same attachment, whose ports are mapped": ("refused", "taken over", "refused"),
    "ADD that has its masqueraded address": ("refused", "taken over", "refused"),
    "ADD that finds no other address": ("refused", "taken over", "refused"),
    "ADD of the same pod that wants its address": ("refused", "taken over", "refused"),
    "ADD of `bridge` that replaces its gateway": ("refused", "taken over", "refused"),
    "ADD of `ptp` that finds its route": ("refused", "taken over", "refused"),
}


@dataclass
class Case:
    """A container c1, which gets into a state after its ADD; and c2, which comes later."""

    machine: Machine
    path: Path  # at which c1's namespace is mounted, as runtimes keep it
    first: str = ""
    second: str = ""
    subnet: str = field(default_factory=lambda: "10.{}.{}.".format(*uuid4().bytes[:2]))

    def __post_init__(self) -> None:
        """Make the namespaces."""
        self.first, self.second = self.machine.container(), self.machine.container()
        bind(self.first, self.path)

    def close(self) -> None:
        """Take the mount away if it is still there."""
        subprocess.run(["umount", "-q", "--lazy", str(self.path)], check=False)

    def network(self, **keys: object) -> Json:
        """Return a bridge network with a subnet of the test's own."""
        ranges = [[{"subnet": f"{self.subnet}0/24"}]]
        ipam = {"type": "host-local", "dataDir": self.machine.data_dir, "ranges": ranges}
        return self.machine.network(**{"ipam": ipam, **keys})

    def add(self, plugin: str, config: Json, *, args: str = "") -> Json:
        """Attach c1."""
        return self.machine.ok(plugin, "ADD", config, str(self.path), args=args)

    def owned(self) -> list[object]:
        """Return what attachments have, comparable; a link's state may change by itself."""
        machine = self.machine
        ends = [machine.command(machine.host, "tc", "qdisc", "show"), *machine.ports()]
        return [machine.nft(), ends, machine.leases(), files_below(machine.state_dir)]

    def add_second(
        self, plugin: str, config: Json, *, containerid: str = "c2", args: str = ""
    ) -> tuple[str, Json]:
        """Attach c2; return what became of it, and the result or the error."""
        reply = self.machine.invoke(
            plugin, "ADD", config, self.second, containerid=containerid, args=args
        )
        if reply.exit_code:
            return "refused", error_of(reply.stdout)
        return "taken over", json.loads(reply.stdout)

    def get_into(self, state: State) -> None:
        """Bring c1 into a state.

        ALIVE: its namespace is at its path. GONE: nothing holds its namespace any more. UNKNOWN: it
        lives, but the mount at its path cannot be seen from here, and it has no process.
        In the last two its interface was moved to the host: the kernel keeps the pair when it takes
        the namespace away, and the pair does not lead to the container.
        """
        if state is ALIVE:
            return
        if any(link["ifname"] == "eth0" for link in self.machine.ip(self.first, "link")):
            self.machine.do(self.first, f"ip link set eth0 netns {self.machine.host} name of-c1")
        detach(self.path)
        if state is GONE:
            self.path.unlink()
            self.machine.forget(self.first)
            self._await_end()

    def _await_end(self) -> None:
        facts = self.facts("host-local")
        deadline = time.monotonic() + 60
        with self.machine.make_host() as host:
            while state_of(host, facts) is not GONE:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def record(self, plugin: str) -> Path:
        """Return c1's record."""
        directory = Path(self.machine.state_dir, "attachments")
        found = [p for p in directory.glob(f"{plugin}-*") if b'"c1"' in p.read_bytes()]
        return found[0] if found else Path("/nonexistent")

    def facts(self, plugin: str) -> Json:
        """Return what c1's record says."""
        facts: Json = {}
        for line in self.record(plugin).read_text().splitlines():
            facts |= json.loads(line)
        return facts

    def age(self) -> None:
        """Make everything older than the grace time."""
        for name in (*files_below(self.machine.state_dir), *files_below(self.machine.data_dir)):
            path = Path(name)
            if path.parent.name == "attachments" and (
                since := json.loads(path.read_text().splitlines()[-1]).get("gone_since")
            ):
                with path.open("a") as file:
                    file.write(json.dumps({"gone_since": since - OLD}) + "\n")
            os.utime(path, (time.time() - OLD,) * 2)

    def pycni(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the host."""
        places = ("--state-dir", self.machine.state_dir, "--data-dir", self.machine.data_dir)
        line = (str(CNI_BIN / "pycni"), *words, "--any-netns", *places)
        return self.machine.try_command(self.machine.host, *line)


@pytest.fixture
def case(machine: Machine, tmp_path: Path) -> Iterator[Case]:
    """Give a case."""
    made = Case(machine, tmp_path / "netns")
    yield made
    made.close()


PLUGINS: dict[str, Json] = {
    "portmap": {"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]}},
    "firewall": {"backend": "nftables"},
    "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 8_000_000},
    "tuning": {"sysctl": {"net.core.somaxconn": "500"}},
}


def chained(case: Case, plugin: str, result: Json, **keys: object) -> Json:
    """Return the configuration of a plugin behind the bridge."""
    kept = {"cniVersion": "1.1.0", "name": case.machine.name, "type": plugin}
    return {**kept, "prevResult": result, **PLUGINS[plugin], **keys}


def port(case: Case, result: Json, number: int, backend: str) -> Json:
    """Return the configuration of portmap for one port."""
    mapping = {"hostPort": number, "containerPort": 80, "protocol": "tcp"}
    return chained(
        case, "portmap", result, backend=backend, runtimeConfig={"portMappings": [mapping]}
    )


# --- the callers ---


def gc(case: Case, state: State, *, listed: bool) -> str:
    """Have GC of every plugin of a chain."""
    machine, config = case.machine, case.network(ipMasq=True, macspoofchk=True)
    result = case.add("bridge", config)
    configs = {plugin: chained(case, plugin, result) for plugin in PLUGINS}
    for plugin, one in configs.items():
        case.add(plugin, one)
    configs["bridge"] = config
    case.get_into(state)
    case.age()
    before = case.owned()
    for plugin in (*PLUGINS, "bridge"):
        one = {key: value for key, value in configs[plugin].items() if key != "prevResult"}
        machine.ok(plugin, "GC", {**one, LIST: []} if listed else one)
    if case.owned() == before:
        return "kept"
    assert not any(case.record(plugin).exists() for plugin in (*PLUGINS, "bridge", "host-local"))
    assert (machine.leases(), machine.ports()) == ([], [])
    assert " c1 eth0" not in json.dumps(machine.nft())
    return "removed"


def gc_of_lease(case: Case, state: State, *, listed: bool) -> str:
    """Have GC of host-local alone: its record has no interface."""
    config = case.network(ipMasq=False)
    case.add("host-local", config)
    case.get_into(state)
    case.age()
    case.machine.ok("host-local", "GC", {**config, LIST: []} if listed else config)
    assert bool(case.machine.leases()) == case.record("host-local").exists()
    return "kept" if case.machine.leases() else "removed"


def reclaim(case: Case, state: State) -> str:
    """Call `pycni reclaim` twice, a grace time apart."""
    case.add("bridge", case.network(ipMasq=True, macspoofchk=True))
    case.get_into(state)
    before = case.machine.leases(), case.machine.nft(), case.machine.ports()
    for _ in range(2):
        case.age()
        done = case.pycni("reclaim")
        assert done.returncode in (0, 1), done.stderr
    after = case.machine.leases(), case.machine.nft(), case.machine.ports()
    if after == before:
        assert case.record("bridge").exists()
        return "kept"
    assert after[0] == after[2] == []
    assert not case.record("bridge").exists()
    return "removed"


def audit(case: Case, state: State) -> str:
    """Call `pycni audit`."""
    case.add("bridge", case.network())
    case.get_into(state)
    case.age()
    found = json.loads(case.pycni("audit", "--json").stdout)["findings"]
    if not found:
        return "not shown"
    shown = {(one["kind"], one["reclaim"]) for one in found if one["containerid"] == "c1"}
    if shown == {("lease", "no")}:
        assert "it cannot be told whether" in found[0]["reason"]
        return "lease left to you"
    assert {("lease", "later"), ("record", "later"), ("veth", "later")} <= shown
    return "shown"


def host_port(case: Case, state: State, *, backend: str) -> str:
    """ADD for another container that wants the port."""
    network = case.network()
    first = case.add("bridge", network)
    _, second = case.add_second("bridge", network)
    case.add("portmap", port(case, first, 8080, backend))
    case.get_into(state)
    outcome, said = case.add_second("portmap", port(case, second, 8080, backend))
    return _refusal(outcome, said, state, "host port 8080/tcp is mapped for")


def host_port_again(case: Case, state: State) -> str:
    """ADD once more, for another namespace."""
    result = case.add("bridge", case.network())
    case.add("portmap", port(case, result, 8080, "nftables"))
    case.get_into(state)
    config = port(case, result, 8080, "nftables")
    outcome, said = case.add_second("portmap", config, containerid="c1")
    assert outcome == "taken over" or "DEL it first" in said["msg"]
    return outcome


def masqueraded(case: Case, state: State) -> str:
    """ADD for a container of another network with the same address."""
    case.add("bridge", case.network(ipMasq=True), args=f"IP={case.subnet}7")
    case.get_into(state)
    other = case.network(ipMasq=True, name=f"{case.machine.name}-2", bridge="br2")
    outcome, said = case.add_second("bridge", other, args=f"IP={case.subnet}7")
    owner = case.machine.masqueraded()[f"{case.subnet}7"]
    assert owner.endswith(" c2 eth0") == (outcome == "taken over")
    return _refusal(outcome, said, state, f"{case.subnet}7 is masqueraded for")


def last_address(case: Case, state: State) -> str:
    """ADD twice, a grace time apart, where c1 has the only address."""
    ipam = {"type": "host-local", "dataDir": case.machine.data_dir}
    config = case.network(ipam={**ipam, "ranges": [[{"subnet": f"{case.subnet}0/30"}]]})
    case.add("bridge", config)
    case.get_into(state)
    case.age()
    assert case.add_second("bridge", config)[0] == "refused"
    case.age()
    return case.add_second("bridge", config)[0]


def address_of_pod(case: Case, state: State) -> str:
    """ADD for the next sandbox of the same pod."""
    config = case.network()
    address = addresses_of(case.add("bridge", config, args=POD))[0]
    case.get_into(state)
    _, result = case.add_second("bridge", config, args=POD)
    return "taken over" if addresses_of(result) == [address] else "refused"


def gateway(case: Case, state: State) -> str:
    """ADD with forceAddress for another network on the same bridge."""
    case.add("bridge", case.network())
    case.get_into(state)
    ranges = [[{"subnet": "10.255.255.0/24"}]]
    ipam = {"type": "host-local", "dataDir": case.machine.data_dir, "ranges": ranges}
    name = f"{case.machine.name}-2"
    other = case.network(name=name, forceAddress=True, ipam=ipam)
    outcome, said = case.add_second("bridge", other)
    mine = f"{case.subnet}1/24" in case.machine.addresses(case.machine.host, "br0")
    assert mine == (outcome == "refused")
    return _refusal(outcome, said, state, "the gateway of network")


def route(case: Case, state: State) -> str:
    """ADD for another container with the same address."""
    addresses = [{"address": f"{case.subnet}7/24", "gateway": f"{case.subnet}1"}]
    ipam = {"type": "static", "addresses": addresses}
    config = {"cniVersion": "1.1.0", "name": case.machine.name, "type": "ptp", "ipam": ipam}
    case.add("host-local", case.network())
    case.add("ptp", config)
    case.get_into(state)
    outcome, said = case.add_second("ptp", config)
    return _refusal(outcome, said, state, f"the host has a route to {case.subnet}7 already")


def _refusal(outcome: str, said: Json, state: State, says: str) -> str:
    """Return the outcome; a refusal names the owner and its state, and for UNKNOWN the reason."""
    if outcome == "refused":
        assert says in said["msg"], said
        assert re.search(r"'(bridge|portmap|ptp) \S+ c1 eth0'", said["msg"]), said
        assert ("which is alive" in said["msg"]) == (state is ALIVE), said
        assert ("cannot be told" in said["msg"]) == (state is UNKNOWN), said
        assert ("is no network namespace here" in said["msg"]) == (state is UNKNOWN), said
    return outcome


CALLERS: dict[str, Callable[[Case, State], str]] = {
    "GC without a list": lambda case, state: gc(case, state, listed=False),
    "GC with a list that does not name it": lambda case, state: gc(case, state, listed=True),
    "GC of host-local without a list": lambda c, state: gc_of_lease(c, state, listed=False),
    "GC of host-local with a list that does not name it": lambda c, state: gc_of_lease(
        c, state, listed=True
    ),
    "`pycni reclaim`, twice": reclaim,
    "`pycni audit`": audit,
    "ADD by nftables that wants its host port": lambda c, s: host_port(c, s, backend="nftables"),
    "ADD by iptables that wants its host port": lambda c, s: host_port(c, s, backend="iptables"),
    "ADD of the same attachment, whose ports are mapped": host_port_again,
    "ADD that has its masqueraded address": masqueraded,
    "ADD that finds no other address": last_address,
    "ADD of the same pod that wants its address": address_of_pod,
    "ADD of `bridge` that replaces its gateway": gateway,
    "ADD of `ptp` that finds its route": route,
}


@pytest.mark.rotating(3)
@pytest.mark.parametrize("state", State, ids=lambda state: state.value)
@pytest.mark.parametrize("caller", TABLE)
def test_table(case: Case, caller: str, state: State) -> None:
    """Each caller does what the table says."""
    assert CALLERS[caller](case, state) == TABLE[caller][(ALIVE, GONE, UNKNOWN).index(state)]


def test_page() -> None:
    """docs/architecture.md has the same table."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in page.splitlines()]

    assert [row for row in rows if row and row[0] in TABLE] == [(k, *v) for k, v in TABLE.items()]


# --- how a state is found ---


def state_seen(case: Case, plugin: str) -> State:
    """Return the state by a record of c1."""
    with case.machine.make_host() as host:
        return state_of(host, case.facts(plugin))


@contextmanager
def without_main_thread(netns: str) -> Iterator[int]:
    """Give a process in a namespace whose main thread has ended, while another runs."""
    program = (
        "import ctypes, os, threading, sys\n"
        "def run():\n"
        "    print(flush=True); sys.stdin.readline(); os._exit(0)\n"
        "threading.Thread(target=run).start()\n"
        "ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)\n"
    )
    process = subprocess.Popen(
        ["nsenter", f"--net={netns}", sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    try:
        process.stdout.readline()
        deadline = time.monotonic() + 60
        while os.path.exists(f"/proc/{process.pid}/ns/net"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process.pid
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def test_main_thread_has_ended(case: Case) -> None:
    """A container lives by any of its threads, though /proc/PID/ns/net is gone."""
    with without_main_thread(case.first):
        case.add("host-local", case.network())
        detach(case.path)
        case.path.unlink()

        assert state_seen(case, "host-local") is ALIVE
    assert state_seen(case, "host-local") is GONE  # what is held by a descriptor alone is not found


@pytest.mark.parametrize("plugin", ["bridge", "host-local", "portmap"])
def test_host_end_is_proof_of_life(case: Case, plugin: str) -> None:
    """A container lives whose pair leads to it; also for records that name no pair."""
    result = case.add("bridge", case.network())
    case.add("portmap", chained(case, "portmap", result))
    detach(case.path)
    case.path.unlink()
    assert state_seen(case, plugin) is ALIVE

    name = result["interfaces"][1]["name"]
    case.machine.do(case.machine.host, f"ip link set {name} address 02:00:00:00:00:01")

    assert state_seen(case, plugin) is GONE  # it is another's by now


@pytest.mark.parametrize("plugin", ["bridge", "host-local", "portmap"])
def test_host_end_of_a_namespace_that_ends(case: Case, plugin: str) -> None:
    """A pair that the kernel has yet to take away keeps nobody alive for longer than that."""
    result = case.add("bridge", case.network())
    case.add("portmap", chained(case, "portmap", result))
    detach(case.path)
    case.path.unlink()

    case.machine.end(case.first)

    assert state_seen(case, plugin) is GONE


@pytest.mark.parametrize("plugin", ["host-local", "portmap"])
def test_processes_that_are_hidden(case: Case, plugin: str) -> None:
    """In another PID namespace than that of the record's writer nothing proves a death."""
    network = case.network()
    result = case.add("bridge", network)
    config = chained(case, "portmap", result) if plugin == "portmap" else network
    if plugin == "portmap":
        case.add("portmap", config)
    case.get_into(UNKNOWN)
    case.path.unlink()
    case.age()
    before = case.machine.nft(), case.machine.leases(), case.record(plugin)
    environ = case.machine.environ("GC")
    config = {**config, LIST: []}
    config.pop("prevResult", None)
    call = ["unshare", "--pid", "--fork", "--mount-proc", "--mount", "sh", "-c"]
    # The plugin's directory of records is where it is for everybody: the machine's is put there.
    place = f"mkdir -p /run/pycni && mount --bind {case.machine.state_dir} /run/pycni"
    with case.machine.process_in(case.first):
        done = case.machine.try_command(
            case.machine.host,
            *call,
            f"{place} && exec {CNI_BIN}/{plugin}",
            stdin=json.dumps(config),
            env=environ,
        )

    assert done.returncode == 0, done.stdout + done.stderr
    assert (case.machine.nft(), case.machine.leases(), case.record(plugin)) == before


@pytest.mark.parametrize("plugin", ["bridge", "host-local", "portmap"])
def test_record_without_a_namespace(case: Case, plugin: str) -> None:
    """A record that names no namespace tells nothing, but that it is unknown."""
    result = case.add("bridge", case.network())
    case.add("portmap", chained(case, "portmap", result))
    case.get_into(GONE)
    with case.record(plugin).open("a") as file:
        file.write('{"netns_id": ""}\n')

    assert state_seen(case, plugin) is UNKNOWN


def test_empty_record(case: Case) -> None:
    """The record of an ADD that was killed before it had made anything is removed."""
    config = case.network()
    case.add("bridge", config)
    path = case.record("bridge")
    empty = path.with_name(path.name[:-4] + "0000")
    empty.touch()
    cut_short = path.with_name(path.name[:-4] + "0002")
    cut_short.write_text('{"plugin":"bridge","net')
    damaged = path.with_name(path.name[:-4] + "0001")
    damaged.write_text("{\n")
    for one in (empty, cut_short, damaged):
        os.utime(one, (time.time() - OLD,) * 2)

    case.machine.ok("bridge", "GC", config)

    assert [one.exists() for one in (empty, cut_short, damaged, path)] == [False, False, True, True]
