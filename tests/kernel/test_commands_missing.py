"""`pycni audit` and `explain` of objects that living containers lack."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from commands import DONE, FAILED, FOUND, LACKING
from tests.kernel import points
from tests.kernel.ports import port
from tests.kernel.test_commands import (
    NOTHING,
    POD,
    Alive,
    age,
    asked,
    config,
    dead,
    pycni,
    records,
    words_of,
)
from tests.kernel.test_commands_plugins import Attached, chained, with_ports
from tests.mounts import bind, detach
from tests.resident import start_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.machine import Json, Machine

pytestmark = [
    pytest.mark.without_engine("the commands know nothing of it"),
    pytest.mark.timeout(300),
]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Return a stack for processes that live as long as the test."""
    with ExitStack() as stack:
        yield stack


def lacking(machine: Machine) -> set[tuple[str, str]]:
    """Return kind and container of what audit shows as missing."""
    found = asked(machine, "audit", status=LACKING)["missing"]
    return {(one["kind"], one["containerid"]) for one in found}


def full_chain(machine: Machine, stack: ExitStack, containerid: str = "c1") -> str:
    """Attach a living container by every plugin; return its namespace."""
    conf = config(machine)
    netns = machine.container()
    stack.enter_context(machine.process_in(netns))
    result = machine.ok("bridge", "ADD", conf, netns, containerid=containerid, args=POD)
    chain: dict[str, Json] = {
        "tuning": {"mtu": 1400, "sysctl": {"net.core.somaxconn": "77"}},
        "portmap": {
            "capabilities": {"portMappings": True},
            "runtimeConfig": {"portMappings": [port(8080), port(8081, 53, "udp")]},
        },
        "bandwidth": {"ingressRate": 8_000_000, "egressRate": 8_000_000},
        "firewall": {"backend": "nftables", "ingressPolicy": "isolated"},
    }
    for kind, keys in chain.items():
        keys = {"dataDir": f"{machine.data_dir}-tuning", **keys} if kind == "tuning" else keys
        call = chained(machine, kind, result, **keys)
        result = machine.ok(kind, "ADD", call, netns, containerid=containerid, args=POD)
    return netns


# Faults that add up, in this order: where, command, and kind and container that audit shows then.
FAULTS: list[tuple[str, str, tuple[str, str]]] = [
    ("container", "ip link set eth0 mtu 1300", ("mtu", "c1")),
    ("container", "ip link set eth0 address 02:00:00:00:00:07", ("mac", "c1")),
    ("container", "sysctl -qw net.core.somaxconn=5", ("sysctl", "c1")),
    ("container", "ip addr flush dev eth0", ("address", "c1")),
    ("host", "rm LEASE", ("lease", "c1")),
    ("host", "tc qdisc del dev PORT root", ("limit", "c1")),
    ("host", "tc qdisc del dev PORT ingress", ("redirection", "c1")),
    ("host", "sysctl -qw net.ipv4.conf.br0.route_localnet=0", ("route-localnet", "")),
    ("host", "sysctl -qw net.ipv4.ip_forward=0", ("forwarding", "")),
    ("host", "ip addr flush dev br0", ("gateway", "")),
    ("host", "ip link set br0 down", ("bridge", "")),
    ("host", "ip link set PORT nomaster", ("bridge-port", "c1")),
    ("host", "nft flush chain ip filter FORWARD", ("firewall", "")),
    ("host", "nft flush chain inet pycni postrouting", ("masquerade", "")),
    ("host", "nft flush chain bridge pycni prerouting", ("mac-filter", "")),
    ("host", "nft delete table inet pycni", ("masquerade", "c1")),
    ("host", "nft flush ruleset", ("mac-filter", "c1")),
]


def test_what_a_living_container_lacks(machine: Machine, stack: ExitStack) -> None:
    """audit names it with a status of its own, explain too; a shared object names no container."""
    netns = full_chain(machine, stack)
    assert asked(machine, "audit") == NOTHING
    assert pycni(machine, "explain", "c1").returncode == DONE
    (address,) = machine.leases()
    lease = f"{machine.data_dir}/{machine.name}/{address}"
    (port_of_c1,) = machine.ports()
    expected: set[tuple[str, str]] = set()

    for where, line, found in FAULTS:
        line = line.replace("PORT", port_of_c1).replace("LEASE", lease)
        machine.do(netns if where == "container" else machine.host, line)
        before, expected = expected, lacking(machine)
        assert found in expected - before, line

    assert expected >= {("host-port", "c1"), ("firewall", "c1"), ("mtu", "c1"), ("lease", "c1")}
    kinds = {kind for _, _, (kind, _) in FAULTS}
    assert {kind for kind, _ in expected} == {*kinds, "host-port"}
    shown = pycni(machine, "explain", "c1")
    assert (shown.returncode, "missing" in shown.stdout) == (FOUND, True)
    text = pycni(machine, "audit").stdout
    assert re.match(
        r"\d+ objects are missing, though living containers need them; run 'pycni\srepair\s--all'\n"
        r"\nmissing:",
        text,
    )
    assert pycni(machine, "reclaim").stdout == "nothing to reclaim\n"


PTP = {
    "route": ("ip route del ADDRESS", {("route", "c1")}),
    # The kernel removes the route with the address that is its source.
    "gateway": ("ip addr flush dev PORT scope global", {("gateway", "c1"), ("route", "c1")}),
    "forwarding": ("sysctl -qw net.ipv4.ip_forward=0", {("forwarding", "")}),
}


@pytest.mark.parametrize("name", PTP)
def test_what_a_container_of_ptp_lacks(machine: Machine, stack: ExitStack, name: str) -> None:
    """The host's route, the gateway and forwarding are ptp's, too."""
    line, expected = PTP[name]
    (((subnet,),)) = config(machine)["ipam"]["ranges"]
    netns = machine.container()
    stack.enter_context(machine.process_in(netns))
    conf = points.network(machine, subnet["subnet"], ipMasq=True)
    result = machine.ok("ptp", "ADD", conf, netns)
    assert asked(machine, "audit") == NOTHING
    address = result["ips"][0]["address"].partition("/")[0]
    line = line.replace("PORT", machine.ports()[0]).replace("ADDRESS", address)

    machine.command(machine.host, "sh", "-ec", line)

    assert lacking(machine) == expected


def test_iptables(machine: Machine, stack: ExitStack) -> None:
    """A chain of iptables to which no rule leads is of no use: the rule is missing."""
    other = {"name": f"{machine.name}-2", "bridge": "br1"}
    Alive(machine, stack, config(machine, ipMasqBackend="iptables", **other), "c1")
    two = with_ports(machine, "c2", "iptables", first=9090)
    stack.enter_context(machine.process_in(two.netns))
    assert asked(machine, "audit") == NOTHING

    machine.do(machine.host, "iptables -t nat -F POSTROUTING", "iptables -t nat -F PREROUTING")
    machine.do(machine.host, "iptables -t nat -F CNI-HOSTPORT-DNAT")

    assert {("iptables", "c1"), ("iptables", "c2")} <= lacking(machine)


def test_a_port_on_two_networks(machine: Machine, stack: ExitStack) -> None:
    """A port that the container has by its first network is not missing on the second."""
    netns = machine.container()
    stack.enter_context(machine.process_in(netns))
    mapped = {
        "capabilities": {"portMappings": True},
        "runtimeConfig": {"portMappings": [port(8080)]},
    }
    for number in range(2):
        conf = config(machine, name=f"{machine.name}-{number}", bridge=f"br{number}")
        result = machine.ok("bridge", "ADD", conf, netns, ifname=f"eth{number}")
        chain = {**chained(machine, "portmap", result, **mapped), "name": conf["name"]}
        machine.ok("portmap", "ADD", chain, netns, ifname=f"eth{number}")

    assert asked(machine, "audit") == NOTHING
    assert pycni(machine, "explain", "c1").returncode == DONE
    machine.do(machine.host, "nft flush map inet pycni hostports4")
    assert lacking(machine) == {("host-port", "c1")}


def test_the_dead_lack_nothing(machine: Machine, stack: ExitStack) -> None:
    """Objects of a dead container are leftovers; both kinds of findings have their section."""
    conf = config(machine)
    dead(machine, conf)
    machine.do(machine.host, "nft flush set bridge pycni guarded_ports")
    assert asked(machine, "audit", status=FOUND)["missing"] == []

    Alive(machine, stack, conf, "alive")
    machine.do(machine.host, "nft delete table bridge pycni")

    done = pycni(machine, "audit")
    found = asked(machine, "audit", status=LACKING)
    assert {one["containerid"] for one in found["findings"]} == {"dead"}
    assert {one["containerid"] for one in found["missing"]} == {"alive", ""}
    assert re.match(
        r"1 lease and \d+ other objects of 1 dead container; run 'pycni reclaim' twice, a\n"
        r"minute apart\n\d objects are missing, though living containers need them; run 'pycni\s"
        r"repair\s--all'\n\n",
        done.stdout,
    )
    assert done.stdout.index("\nmissing:\n") > done.stdout.index("\ncontainer dead\n")


def test_a_shared_object_is_shown_once(machine: Machine, stack: ExitStack) -> None:
    """Forwarding that is off is one fault, however many containers need it."""
    conf = config(machine)
    for number in range(3):
        Alive(machine, stack, conf, f"c{number}")
    machine.do(machine.host, "sysctl -qw net.ipv4.ip_forward=0")

    (only,) = asked(machine, "audit", status=LACKING)["missing"]

    assert only == {
        "kind": "forwarding",
        "what": "sysctl net.ipv4.ip_forward",
        "network": machine.name,
        "containerid": "",
        "ifname": "",
        "pod": "",
    }


def test_a_call_at_work(machine: Machine, stack: ExitStack) -> None:
    """Objects that an ADD is about to make, or a DEL has removed, are not missing: a lock tells."""
    Alive(machine, stack, config(machine), "c1")
    machine.do(machine.host, "nft flush ruleset")
    (record,) = [path for path in records(machine) if path.name.startswith("bridge-")]
    with record.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        assert asked(machine, "audit") == NOTHING

    assert ("masquerade", "c1") in lacking(machine)


def test_a_container_elsewhere(machine: Machine, stack: ExitStack, tmp_path: Path) -> None:
    """A namespace that lost its path is found by its process, and looked into there."""
    container, path = machine.container(), tmp_path / "netns"
    bind(container, path)
    machine.ok("bridge", "ADD", config(machine), str(path))
    stack.enter_context(machine.process_in(container))
    detach(path)
    assert asked(machine, "audit") == NOTHING

    machine.do(container, "ip addr flush dev eth0")

    assert lacking(machine) == {("address", "c1")}


def test_one_that_cannot_be_looked_at(machine: Machine, stack: ExitStack) -> None:
    """A record that says nonsense is told of, and does not hide what others lack."""
    conf = config(machine)
    for name in ("odd", "plain"):
        Alive(machine, stack, conf, name)
    for path in records(machine):
        if '"odd"' in path.read_text() and path.name.startswith("bridge-"):
            path.write_text(path.read_text() + '{"masquerade": {"addresses": ["x"]}}\n')
    machine.do(machine.host, "nft flush map inet pycni masquerade4")

    done = pycni(machine, "audit")

    assert done.returncode == LACKING
    assert "not all of odd eth0 of network" in done.stderr
    assert "\ncontainer plain\n" in done.stdout


# --- a container by other names than its id ---


def test_lookup(machine: Machine, stack: ExitStack) -> None:
    """A container is found by everything that an operator may have at hand."""
    one = with_ports(machine, "c1aa", "nftables", first=8080)
    two = with_ports(machine, "c2bb", "iptables", first=9090)
    processes = [start_in(o.netns, "sleep", "infinity") for o in (one, two)]
    for process in processes:
        stack.callback(process.wait)
        stack.callback(process.kill)
    addresses = [o.result["ips"][0]["address"] for o in (one, two)]
    ends = [o.result["interfaces"][1]["name"] for o in (one, two)]
    words = [
        *(("c1a", "c2b"), addresses, [text.partition("/")[0] for text in addresses], ends),
        *((one.netns, two.netns), ("8080", "9091"), ("8081/udp", "9090/tcp")),
        *([str(o.pid) for o in processes], [f"/proc/{o.pid}/ns/net" for o in processes]),
    ]

    for pair in words:
        found = [asked(machine, "explain", word)["containerid"] for word in pair]
        assert found == ["c1aa", "c2bb"], pair
    assert pycni(machine, "explain", "7070").returncode == FOUND
    assert pycni(machine, "explain", str(os.getpid())).returncode == FOUND


def test_lookup_by_pod(machine: Machine, stack: ExitStack) -> None:
    """A pod is found by its name, with or without namespace; of two containers the living one."""
    conf = config(machine)
    container, ports = machine.container(), machine.ports()
    machine.ok("bridge", "ADD", conf, container, containerid="former", args=POD)
    machine.forget(container)
    Alive(machine, stack, conf, "present")
    assert machine.ports() != ports

    for word in ("shop/web-1", "web-1"):
        assert asked(machine, "explain", word)["containerid"] == "present"
    assert pycni(machine, "explain", "shop").returncode == FOUND
    assert asked(machine, "explain", "--by", "id", "former", status=FOUND)["attachments"]


def test_lookup_of_several(machine: Machine, stack: ExitStack) -> None:
    """A word with several meanings is not guessed: the command names them, and --by decides."""
    one = with_ports(machine, "c1", "nftables", first=8080)
    other = Attached(machine, "8080aa", "tuning", mtu=1400, dataDir=f"{machine.data_dir}-t")
    for netns in (one.netns, other.netns):
        stack.enter_context(machine.process_in(netns))

    done = pycni(machine, "explain", "8080")

    assert (done.returncode, done.stdout) == (FAILED, "")
    assert "8080aa (by id), c1 (by hostport)" in done.stderr
    assert asked(machine, "explain", "--by", "hostport", "8080")["containerid"] == "c1"
    assert asked(machine, "explain", "--by", "id", "8080")["containerid"] == "8080aa"


def test_explain_shows_settings(machine: Machine, stack: ExitStack) -> None:
    """Addresses, routes, MAC, MTU and sysctls are shown; settings of tuning as tuning left them."""
    netns = full_chain(machine, stack)
    link = machine.link(netns, "eth0")
    assert link is not None

    (found,) = asked(machine, "explain", "c1")["attachments"]

    shown = {(one["kind"], one["what"]) for one in found["objects"]}
    (address,) = found["addresses"]
    assert ("mac", f"{link['address']} of 'eth0'") in shown
    assert [what for kind, what in shown if kind == "mtu"] == ["1400 of 'eth0'"]
    assert ("address", f"{address['address']}/24 of 'eth0'") in shown
    assert ("sysctl", "net/core/somaxconn = 77") in shown
    assert ("forwarding", True) in {(one["kind"], one["present"]) for one in found["shared"]}


# --- an output that nobody reads, or that is full ---


def test_closed_pipe(machine: Machine) -> None:
    """A reader that has gone ends a command in silence, by SIGPIPE as it ends `cat`."""
    dead(machine, config(machine))
    for words in (["leases"], ["audit"], ["explain", "dead"], ["reclaim"], ["reclaim", "--json"]):
        with closed_pipe() as writer:
            done = run_on(machine, writer, *words)

        assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b""), words


def test_closed_pipe_of_the_log(machine: Machine) -> None:
    """reclaim removes everything that is due, also if nobody reads its log."""
    dead(machine, config(machine))
    age(machine)
    assert pycni(machine, "reclaim").returncode == FOUND
    age(machine)
    with closed_pipe() as writer:
        done = run_on(machine, writer, "reclaim", stderr=writer)

    assert done.returncode == -signal.SIGPIPE
    assert (records(machine), machine.leases()) == ([], [])


@pytest.mark.parametrize("words", [["leases"], ["audit"], ["explain", "dead"], ["version"], []])
def test_full_disk(machine: Machine, words: list[str]) -> None:
    """Where the answer cannot be written, one line says why, and the status is 3."""
    dead(machine, config(machine))
    with Path("/dev/full").open("wb") as full:
        done = run_on(machine, full.fileno(), *words)

    assert done.returncode == FAILED
    assert done.stderr.count(b"\n") == 1
    assert b"cannot write to stdout: No space left on device" in done.stderr


@contextmanager
def closed_pipe() -> Iterator[int]:
    """Return the writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def run_on(
    machine: Machine, stdout: int, *words: str, stderr: int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """Run a command with these descriptors as stdout and stderr."""
    asks_node = bool(words) and words[0] != "version"
    line = words_of(machine, *words) if asks_node else words_of(machine)[:1] + list(words)
    enter = ["nsenter", f"--net={machine.host}"]
    pipes: dict[str, Any] = {"stdout": stdout, "stderr": stderr}
    return subprocess.run([*enter, *line], check=False, timeout=120, **pipes)
