"""DHCP servers, and the daemon of the dhcp plugin, as processes in namespaces."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.e2e.node import OUTSIDE4, OUTSIDE6, Node
from tests.machine import CNI_BIN, DIST, TOOLS, Json, Machine
from tests.resident import start_in
from tests.waits import GENEROUS, wait_until

DNSMASQ = "/usr/sbin/dnsmasq"
DHCPD = TOOLS / "dhcp/usr/sbin/dhcpd"
DHCRELAY = TOOLS / "dhcp/usr/sbin/dhcrelay"
KEA = TOOLS / "kea/usr"


class Process:
    """A process in a namespace, and the lines that it writes to stderr.

    That is a file: a server blocks on a pipe that nobody reads.
    """

    def __init__(self, netns: str, *words: str) -> None:
        """Start it; without a namespace the words say where that is."""
        self.lines: list[str] = []
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._rest = b""
        self._at = 0
        if netns:
            self.process = start_in(netns, *words, stderr=self._file)
        else:
            self.process = subprocess.Popen(words, stderr=self._file)

    def await_line(self, pattern: str, count: int = 1) -> str:
        """Wait until `count` lines have matched since the start, and return the last of them."""
        deadline = time.monotonic() + GENEROUS
        while True:
            has_ended = self.process.poll() is not None
            self.read()
            found = [line for line in self.lines if re.search(pattern, line)]
            if len(found) >= count:
                return found[count - 1]
            text = "\n".join(self.lines)
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{text}"
            assert not has_ended, f"it ended, without {pattern!r}:\n{text}"
            time.sleep(0.005)

    def count(self, pattern: str) -> int:
        """Return the number of lines so far that match."""
        self.read()
        return sum(bool(re.search(pattern, line)) for line in self.lines)

    def read(self) -> None:
        """Take in what it has written."""
        while data := os.pread(self._file.fileno(), 1 << 16, self._at):
            self._at += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.lines += [line.decode("utf-8", "replace") for line in lines]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Have a signal end it, and return its status."""
        self.process.send_signal(number)
        status = self.process.wait(GENEROUS)
        self.read()
        return status

    def close(self) -> None:
        """End it unless it has ended."""
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
        self._file.close()


@contextmanager
def running(process: Process) -> Iterator[Process]:
    """End a process at last, unless that has happened."""
    try:
        yield process
    finally:
        process.close()


class Daemon:
    """`dhcp daemon` on a machine's host, which can be ended and started again."""

    def __init__(self, machine: Machine, tmp: Path, program: str = str(CNI_BIN / "dhcp")) -> None:
        self.socket = str(tmp / "dhcp.sock")
        self.leases = tmp / "dhcp-leases"
        self.process: Process
        self._machine = machine
        self._program = program

    def start(self, *options: str) -> Process:
        """Start it, and wait until it serves."""
        if hasattr(self, "process"):
            self.process.close()
        paths = (f"-socketpath={self.socket}", "-leasedir", str(self.leases))
        self.process = Process(self._machine.host, self._program, "daemon", *paths, *options)
        self.process.await_line("serves at")
        return self.process

    def ipam(self, **keys: object) -> Json:
        """Return the IPAM section that uses it."""
        return {"type": "dhcp", "daemonSocketPath": self.socket, **keys}


@contextmanager
def daemon_on(machine: Machine, tmp: Path, *options: str) -> Iterator[Daemon]:
    """Give a daemon that serves."""
    daemon = Daemon(machine, tmp)
    daemon.start(*options)
    try:
        yield daemon
    finally:
        daemon.process.close()


def dnsmasq(netns: str, tmp: Path, *options: str, interface: str = "uplink") -> Process:
    """Return dnsmasq as a DHCP server, which serves."""
    process = Process(netns, *dnsmasq_words(tmp, *options, interface=interface))
    process.await_line("DHCP, ")
    return process


def dnsmasq_words(tmp: Path, *options: str, interface: str) -> list[str]:
    """Return the command line of dnsmasq as a DHCP server, and nothing else."""
    return [
        *(DNSMASQ, "--no-daemon", "--conf-file=/dev/null", "--port=0", "--log-dhcp", "--no-ping"),
        *(f"--interface={interface}", "--bind-interfaces", "--user=root", "--no-hosts"),
        *("--no-resolv", f"--dhcp-leasefile={tmp}/dnsmasq.leases", "--pid-file"),
        *options,
    ]


@contextmanager
def served(node: Node, tmp: Path, *, has_ipv6: bool = False) -> Iterator[None]:
    """Have a node's outside serve DHCP, and advertise itself for IPv6; the node has a daemon."""
    options = [f"--dhcp-range={OUTSIDE4[:-1]}50,{OUTSIDE4[:-1]}59", f"--dhcp-option=3,{OUTSIDE4}"]
    if has_ipv6:
        options += ["--enable-ra", f"--dhcp-range={OUTSIDE6[:-1]}50,{OUTSIDE6[:-1]}59"]
    words = dnsmasq_words(tmp, *options, interface="ext0")
    with running(Process("", *node.entered(*words, netns="/run/netns/outside"))) as server:
        server.await_line("DHCP, ")
        with daemon_of(node):
            yield


@contextmanager
def daemon_of(node: Node) -> Iterator[None]:
    """Have a node have a daemon."""
    with running(Process("", *node.entered(DIST / "dhcp", "daemon"))) as process:
        process.await_line("serves at")
        yield


def leases_of(tmp: Path) -> dict[str, str]:
    """Return the addresses that dnsmasq has given, with their client identifiers."""
    path = tmp / "dnsmasq.leases"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return {words[2]: words[4] for words in lines}


def kept(daemon: Daemon) -> list[str]:
    """Return the addresses of all leases that the daemon has on disk."""
    addresses = []
    for path in daemon.leases.glob("*.json"):
        with suppress(FileNotFoundError):  # the daemon may remove a file after it was listed
            entry = json.loads(path.read_text())
            addresses += [entry["lease"]["address"]] if "lease" in entry else []
    return sorted(addresses)


def pull_the_cable(machine: Machine, outside: str) -> None:
    """Take the carrier of the host's uplink away for a moment."""

    def state() -> str:
        link = machine.link(machine.host, "uplink")
        assert link
        return str(link["operstate"])

    machine.do(outside, "ip link set uplink down")
    wait_until(lambda: state() != "UP", "the link stays up")
    machine.do(outside, "ip link set uplink up")
    wait_until(lambda: state() == "UP", "the link stays down")


def dhcpd(netns: str, tmp: Path, *statements: str, seconds: int = 4, version: int = 4) -> Process:
    """Return ISC dhcpd on `uplink`, whose leases can be as short as no other server's."""
    configuration, leases = tmp / "dhcpd.conf", tmp / "dhcpd.leases"
    configuration.write_text(
        f"default-lease-time {seconds}; max-lease-time {seconds}; min-lease-time {seconds};"
        f" authoritative; ping-check off; ddns-update-style none; {' '.join(statements)}"
    )
    leases.touch()
    process = Process(
        netns,
        *(str(DHCPD), f"-{version}", "-d", "-f", "--no-pid", "-user", "root", "-group", "root"),
        *("-cf", str(configuration), "-lf", str(leases), "uplink"),
    )
    process.await_line("Server starting service")
    return process


def kea(
    netns: str, tmp: Path, first: str, last: str, *, seconds: int = 4, **options: str
) -> Process:
    """Return kea-dhcp4 on `uplink`, which gives `first` to `last`, and serves."""
    configuration = tmp / "kea.json"
    subnet = {"subnet": "192.0.2.0/24", "pools": [{"pool": f"{first} - {last}"}]}
    data = [{"name": name.replace("_", "-"), "data": data} for name, data in options.items()]
    log = {"name": "kea-dhcp4", "severity": "INFO", "output_options": [{"output": "stderr"}]}
    content = {
        "interfaces-config": {"interfaces": ["uplink"]},
        "lease-database": {"type": "memfile", "name": f"{tmp}/kea.leases", "lfc-interval": 0},
        "authoritative": True,
        "valid-lifetime": seconds,
        "renew-timer": seconds // 2,
        "expired-leases-processing": {"hold-reclaimed-time": 0},
        "option-data": data,
        "subnet4": [subnet],
        "loggers": [log],
    }
    configuration.write_text(json.dumps({"Dhcp4": content}))
    (libraries,) = KEA.glob("lib/*-linux-gnu*")
    places = ("KEA_LOCKFILE_DIR", "KEA_PIDFILE_DIR")
    environ = [f"LD_LIBRARY_PATH={libraries}", *(f"{one}={tmp}" for one in places)]
    process = Process(netns, "env", *environ, f"{KEA}/sbin/kea-dhcp4", "-c", str(configuration))
    process.await_line("DHCP4_STARTED")
    return process
