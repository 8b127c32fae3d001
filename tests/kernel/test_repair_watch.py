"""`pycni repair` on a pretend host: once, and as a watch under running traffic."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest

from commands import DONE, FAILED, FOUND, LACKING, repair_watch
from tests.kernel.ports import HOST4, Node, port
from tests.kernel.test_commands import asked, pycni, words_of
from tests.resident import start_in, visiting
from tests.waits import longer_if_busy, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.machine import Machine

pytestmark = [
    pytest.mark.without_engine("the commands know nothing of it"),
]

QUIET_SECONDS = 1.0  # for which traffic may stand still
SECONDS = 2.5  # for which traffic is looked at
LOOK_SECONDS = 0.01
LEAST_RATE = 250_000  # bytes a second: a tenth of a transfer, more than attempts at one have
PORTS = 4  # of each container


def publish(node: Node, containerid: str, host_port: int) -> str:
    """Attach a container with a published port behind firewall; return its namespace."""
    netns = node.attach(containerid, ipMasq=True, macspoofchk=True)
    ports = [port(host_port + number, 5201 + number) for number in range(PORTS)]
    config = node.config(*ports, containerid=containerid)
    result = node.ok("ADD", config, netns, containerid=containerid)
    keys = {"cniVersion": "1.1.0", "name": node.machine.name, "type": "firewall"}
    firewall = {**keys, "backend": "nftables", "prevResult": result}
    node.machine.ok("firewall", "ADD", firewall, netns, containerid=containerid)
    return netns


@contextmanager
def running(netns: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a namespace as long as the block."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start_in(netns, *words, text=True, **pipes) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


@contextmanager
def watching(machine: Machine, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Have a watch run, which has made its first look."""
    with running(machine.host, *words_of(machine, "repair", "--all", "--watch", *words)) as process:
        wait_until(lambda: is_asleep(process.pid), "the watch does not begin to listen")
        yield process


def is_asleep(pid: int) -> bool:
    """Tell whether a process waits in poll for longer than after an event, as the watch at rest."""
    with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
        words = file.read().split()
    after_event = 1000 * repair_watch.AGAIN_SECONDS
    return words[0] == "7" and int(words[3], 16) > after_event  # poll(2), its timeout


class Traffic(Thread):
    """A client that sends to published ports without an end, and begins anew when it is cut off.

    The host resets a connection to a port that is published no more. A server takes no other client
    while it waits for one that was cut off, so each attempt has another port.
    """

    def __init__(self, netns: str, first: int) -> None:
        super().__init__(daemon=True)
        self._netns, self._first = netns, first
        self._ended = Event()
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """Send until the end."""
        number = 0
        while not self._ended.is_set():
            words = ("-t", "60", "-b", "20M", "--connect-timeout", "100", "--forceflush")
            at = str(self._first + number % PORTS)
            with running(self._netns, "iperf3", "-c", HOST4, "-p", at, *words) as self._process:
                stdout, _ = self._process.communicate(timeout=100)
            number += "connected to" in stdout

    def end(self) -> None:
        """Have it end, and wait for that."""
        self._ended.set()
        if self._process:
            self._process.terminate()
        self.join()


class Meter:
    """Bytes that a container gets."""

    def __init__(self, netns: str) -> None:
        with visiting(netns):
            self._fd = os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC)
        self.forget()

    def forget(self) -> None:
        """Count from now on."""
        self._seen = self._bytes(), time.monotonic()
        self._moved = time.monotonic()
        self.longest = 0.0  # seconds in which nothing moved

    def look(self) -> bool:
        """Tell whether data has moved since the last look."""
        (before, then), (now, at) = self._seen, (self._bytes(), time.monotonic())
        self._seen = now, at
        is_moving = now - before >= LEAST_RATE * (at - then)
        if is_moving:
            self._moved = at
        self.longest = max(self.longest, at - self._moved)
        return is_moving

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _bytes(self) -> int:
        lines = os.pread(self._fd, 1 << 16, 0).decode().splitlines()
        (line,) = (one for one in lines if one.strip().startswith("eth0:"))
        return int(line.partition(":")[2].split()[0])


def listen(machine: Machine, netns: str) -> bool:
    """Tell whether all servers of a container listen."""
    return machine.command(netns, "ss", "-tln").count(":52") == PORTS


@pytest.fixture
def served(machine: Machine) -> Iterator[tuple[Node, list[Meter]]]:
    """Return a node with two containers that get data by published ports, and meters of that.

    The first gets it from outside, and sends to the ports of the second.
    """
    node = Node(machine)
    containers = [publish(node, f"c{number}", 8000 + 100 * number) for number in (1, 2)]
    # Without the rules of firewall nothing passes.
    machine.command(machine.host, "nft", "chain ip filter FORWARD { policy drop ; }")
    machine.command(machine.host, "nft", "add rule ip filter FORWARD ct status dnat accept")
    with ExitStack() as stack:
        for netns in containers:
            for number in range(PORTS):
                stack.enter_context(running(netns, "iperf3", "-s", "-p", str(5201 + number)))
        for netns in containers:
            wait_until(partial(listen, machine, netns), "iperf3 does not listen")
        traffic = [Traffic(node.outside, 8100), Traffic(containers[0], 8200)]
        for one in traffic:
            stack.callback(one.end)
            one.start()
        meters = [Meter(netns) for netns in containers]
        for meter in meters:
            stack.callback(meter.close)
            wait_until(meter.look, "nothing arrives")
        yield node, meters


def look_at(meters: Sequence[Meter], seconds: float) -> None:
    """Look at meters for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for meter in meters:
            meter.look()
        time.sleep(LOOK_SECONDS)


LOSSES = (
    "nft flush ruleset",
    "nft delete table inet pycni",
    "nft flush chain inet pycni hostports",
    "nft flush map inet pycni masquerade4",
    "ip link set {veth} nomaster",
    "ip link set br0 down",
    "ip addr del 10.9.0.1/24 dev br0",
    "sysctl -qw net.ipv4.ip_forward=0",
)


@pytest.mark.parametrize("line", LOSSES)
def test_traffic_is_back(served: tuple[Node, list[Meter]], line: str) -> None:
    """Traffic from outside, and between published ports, stands still for a second at most.

    The watch ends by SIGTERM, and leaves what it has put back.
    """
    node, meters = served
    machine = node.machine
    veth = next(link["name"] for link in node.results["c2 eth0"]["interfaces"][1:])
    with watching(machine) as watch:
        for meter in meters:
            meter.forget()
        machine.command(machine.host, *line.format(veth=veth).split())
        look_at(meters, SECONDS)
        watch.terminate()
        assert watch.wait(10) == DONE

    assert asked(machine, "audit")["missing"] == []
    assert [meter.longest <= longer_if_busy(QUIET_SECONDS) for meter in meters] == [True, True], [
        meter.longest for meter in meters
    ]


def test_nothing_is_back_without_it(served: tuple[Node, list[Meter]]) -> None:
    """The judge of the test above sees a standstill."""
    node, meters = served
    machine = node.machine
    for meter in meters:
        meter.forget()
    machine.command(machine.host, "nft", "flush", "ruleset")
    look_at(meters, QUIET_SECONDS + 0.5)

    stood = [meter.longest for meter in meters]
    assert min(stood) > QUIET_SECONDS, stood


def test_dry_run(machine: Machine) -> None:
    """It says what would come back, and changes nothing."""
    node = Node(machine)
    publish(node, "c1", 8000)
    machine.command(machine.host, "nft", "flush", "ruleset")

    found = asked(machine, "repair", "--all", "--dry-run", status=FOUND)

    assert machine.nft() == []
    assert (found["dryRun"], found["restored"], found["onlyByAdd"]) == (True, [], [])
    assert {"masquerade", "host-port", "mac-filter", "firewall", "route-localnet"} == {
        one["kind"] for one in found["missing"]
    }
    assert asked(machine, "audit", status=LACKING)["missing"] == found["missing"]


def test_one_container(machine: Machine) -> None:
    """The other one stays as it is; then all are repaired, and nothing is left to do."""
    node = Node(machine)
    for number in (1, 2):
        publish(node, f"c{number}", 8000 + 100 * number)
    before = machine.nft()
    machine.command(machine.host, "nft", "flush", "ruleset")

    first = asked(machine, "repair", "c1")
    assert {one["containerid"] for one in first["restored"]} == {"c1", ""}
    left = asked(machine, "audit", status=LACKING)["missing"]
    assert {one["containerid"] for one in left} == {"c2"}
    second = pycni(machine, "repair", "8200")  # by its port
    assert (second.returncode, second.stdout.splitlines()[0][:10]) == (DONE, "put back: ")
    assert max(map(len, second.stdout.splitlines())) <= 80
    third = pycni(machine, "repair", "--all")

    assert (third.returncode, third.stdout) == (DONE, "nothing is missing\n")
    assert len(machine.nft()) == len(before)


def test_what_stays_lost(machine: Machine) -> None:
    """A deleted pair is told apart: only a new ADD makes that."""
    node = Node(machine)
    publish(node, "c1", 8000)
    machine.command(machine.host, "ip", "link", "del", *machine.ports())

    found = asked(machine, "repair", "--all", status=LACKING)

    assert "veth" in {one["kind"] for one in found["onlyByAdd"]}
    assert found["missing"] == []
    said = pycni(machine, "repair", "--all")
    assert said.returncode == LACKING
    assert "lost until the container is started anew: " in said.stdout


def test_which_container(machine: Machine) -> None:
    """An unknown one, and one of several, are refused with a line."""
    node = Node(machine)
    for name in ("c11", "c12"):
        publish(node, name, 8000 if name == "c11" else 8100)

    for word, reason in (("nobody", "no living container"), ("c1", "several containers")):
        done = pycni(machine, "repair", word)
        assert (done.returncode, done.stderr.count("\n")) == (FAILED, 1)
        assert reason in done.stderr
    assert pycni(machine, "repair").returncode == 2
    assert pycni(machine, "repair", "c11", "--all").returncode == 2


def test_the_watch_tells_programs(machine: Machine) -> None:
    """With --json each repair is a line."""
    node = Node(machine)
    publish(node, "c1", 8000)
    with watching(machine, "--json") as watch:
        machine.command(machine.host, "nft", "flush", "ruleset")
        assert watch.stdout is not None
        line = json.loads(watch.stdout.readline())

    assert {one["containerid"] for one in line["restored"]} == {"c1"}
    assert any("of map" in one["what"] for one in line["restored"])


def test_looks_by_itself(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an event the watch looks seldom, for changes without a kernel event."""
    monkeypatch.setattr(repair_watch, "BY_ITSELF_SECONDS", 0.5)
    reading, writing = os.pipe()
    looks: list[float] = []

    def look() -> None:
        looks.append(time.monotonic())
        if len(looks) == 3:
            os.write(writing, b"x")

    with machine.make_host() as host:
        repair_watch.Watch(host.netns).run(look, reading)
    os.close(reading)
    os.close(writing)

    assert len(looks) == 3
    assert all(after - before > 0.4 for before, after in pairwise(looks))
