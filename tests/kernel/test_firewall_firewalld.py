"""firewall with a real firewalld on a message bus of its own, and real connections."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kernel.walls import Walls
from tests.machine import TOOLS, Json, Machine
from tests.waits import wait_until

pytestmark = pytest.mark.timeout(300)  # many calls and connections each
UNPACKED = TOOLS / "firewalld"
NAME, PATH = "org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1"
BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


class Firewalld:
    """A message bus, and firewalld for a machine's host."""

    def __init__(self, machine: Machine, tmp: Path, stack: ExitStack) -> None:
        self.machine = machine
        self._tmp, self._stack = tmp, stack
        (tmp / "etc").mkdir()
        (tmp / "bus.conf").write_text(BUS_CONFIG.format(tmp / "bus"))
        self._start("dbus-daemon", f"--config-file={tmp}/bus.conf", "--nofork", "--nopidfile")
        machine.variables["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={tmp}/bus"
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start firewalld and wait until it serves."""
        # By Debian's own Python, which has the libraries.
        words = ["/usr/bin/python3", str(UNPACKED / "usr/sbin/firewalld"), "--nofork", "--nopid"]
        paths = ["--default-config", str(UNPACKED / "usr/lib/firewalld")]
        process = self._start(*words, *paths, "--system-config", str(self._tmp / "etc"))

        def is_up() -> bool:
            assert process.poll() is None, (self._tmp / "log").read_text()
            return self.call("getDefaultZone", interface=NAME).returncode == 0

        wait_until(is_up, "firewalld does not come up")
        return process

    def stop(self) -> None:
        """End firewalld; it takes its rules away."""
        self.process.terminate()
        self.process.wait()

    def call(
        self, member: str, *arguments: str, interface: str = f"{NAME}.zone"
    ) -> subprocess.CompletedProcess[str]:
        """Call a method by another program than ours."""
        words = ["dbus-send", "--system", "--print-reply", f"--dest={NAME}", PATH]
        strings = [f"string:{argument}" for argument in arguments]
        return self.machine.try_command(
            self.machine.host,
            *[*words, f"{interface}.{member}", *strings],
            env={"PATH": "/usr/bin", **self.machine.variables},
        )

    def sources(self, zone: str = "trusted") -> list[str]:
        """Return the sources of a zone."""
        lines = self.call("getSources", zone).stdout.splitlines()
        return sorted(line.split('"')[1] for line in lines if "string" in line)

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(UNPACKED / "usr/lib/python3/dist-packages"),
            **self.machine.variables,
        }
        log = self._stack.enter_context((self._tmp / "log").open("ab"))
        process = subprocess.Popen(
            ["nsenter", f"--net={self.machine.host}", *words],
            env=environ,
            stdout=log,
            stderr=log,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process


@pytest.fixture
def walls(machine: Machine) -> Walls:
    """Give a node."""
    return Walls(machine)


@pytest.fixture
def firewalld(walls: Walls, tmp_path: Path) -> Iterator[Firewalld]:
    """Run firewalld on the node."""
    assert (UNPACKED / "complete").exists(), "run deploy/prerequisites.sh --reference"
    directory = tmp_path / "firewalld"
    directory.mkdir()
    with ExitStack() as stack:
        yield Firewalld(walls.machine, directory, stack)


OUT = [("c1", "outside", 4), ("c1", "outside", 6)]


@pytest.mark.parametrize("backend", ["", "firewalld"])
def test_let_through(walls: Walls, firewalld: Firewalld, backend: str) -> None:
    """firewalld is chosen where it runs, and the container passes while it is attached."""
    walls.attach()
    expected = sorted([f"{walls.address(4)}/32", f"{walls.address(6)}/128"])

    before = walls.reach(*OUT)
    walls.ok("ADD", backend=backend)
    during, sources = walls.reach(*OUT), firewalld.sources()
    walls.ok("CHECK", backend=backend)
    walls.call("DEL", walls.config(prevResult=None), netns="")

    assert (before, during) == ([False, False], [True, True])
    assert (sources, firewalld.sources()) == (expected, [])
    assert (walls.records(), walls.rules()) == ([], [])


def test_beside_docker(walls: Walls, firewalld: Firewalld) -> None:
    """Where docker drops what firewalld lets through, the container passes all the same."""
    walls.shell("iptables -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP")
    walls.admitted("c1")

    assert len(firewalld.sources()) == 2
    assert walls.reach(*OUT) == [True, True]
    walls.ok("CHECK")
    walls.ok("DEL")
    assert (walls.rules(), walls.rules(6, "legacy")) == ([], [])


def test_address_of_two_backends(walls: Walls, firewalld: Firewalld) -> None:
    """A source goes although another attachment lets its address through by rules."""
    walls.admitted("c1")
    other = walls.config(backend="nftables")
    netns = walls.netns["c1"]
    walls.call("ADD", other, "other", netns=netns)

    walls.ok("DEL")

    assert firewalld.sources() == []
    assert walls.rules() != []
    walls.call("DEL", other, "other", netns=netns)
    assert walls.rules() == []


def test_reload(walls: Walls, firewalld: Firewalld) -> None:
    """A reload forgets the sources: CHECK tells, and ADD puts them back."""
    walls.admitted("c1")
    assert firewalld.call("reload", interface=NAME).returncode == 0

    error = walls.machine.refused("firewall", "CHECK", walls.config(), walls.netns["c1"])
    walls.ok("ADD")

    assert "is not in zone 'trusted' of firewalld" in error["msg"]
    walls.ok("CHECK")


def test_policies(walls: Walls, firewalld: Firewalld) -> None:
    """Bridges are kept apart beside firewalld, too, which lets both of them through."""
    walls.admitted("a", "b", ingressPolicy="isolated")
    walls.admitted("c", bridge=1, ingressPolicy="same-bridge")

    assert len(firewalld.sources()) == 6
    calls = [("a", "b", 4), ("a", "c", 6), ("a", "outside", 4)]
    assert walls.reach(*calls) == [False, False, True]
    for cid, bridge in (("a", 0), ("b", 0), ("c", 1)):
        walls.call("DEL", walls.config(cid, bridge=bridge, prevResult=None), cid, netns="")
    assert (walls.own(), firewalld.sources()) == ([], [])


def test_unknown_zone(walls: Walls, firewalld: Firewalld) -> None:
    """A refusal by firewalld is reported in its words, and nothing is left."""
    walls.attach()
    config = walls.config(firewalldZone="moon")

    error = walls.machine.refused("firewall", "ADD", config, walls.netns["c1"])

    assert "INVALID_ZONE" in error["msg"]
    assert (walls.records(), firewalld.sources()) == ([], [])


def test_half_of_an_add_is_taken_back(walls: Walls, firewalld: Firewalld) -> None:
    """When the second address is refused, the first does not stay."""
    walls.attach()
    assert firewalld.call("addSource", "public", f"{walls.address(6)}/128").returncode == 0

    error = walls.machine.refused("firewall", "ADD", walls.config(), walls.netns["c1"])

    assert "ZONE_CONFLICT" in error["msg"]
    assert (walls.records(), firewalld.sources()) == ([], [])
    assert firewalld.sources("public") == [f"{walls.address(6)}/128"]


def test_firewalld_that_ends(walls: Walls, firewalld: Firewalld) -> None:
    """DEL works without it, as its sources went with it; an ADD that asks for it is refused."""
    walls.admitted("c1")
    firewalld.stop()

    walls.ok("DEL")
    config = walls.config(backend="firewalld")
    errors = [
        walls.machine.refused("firewall", command, config, walls.netns["c1"])
        for command in ("ADD", "CHECK", "STATUS")
    ]

    assert {error["code"] for error in errors} == {50}
    assert walls.records() == []
    walls.ok("ADD")  # without the key another backend is chosen
    assert len(walls.rules()) == 3


def test_no_bus(walls: Walls) -> None:
    """Without a message bus the backend is unavailable, which STATUS tells."""
    walls.machine.variables["DBUS_SYSTEM_BUS_ADDRESS"] = "unix:path=/nowhere;tcp:host=a,port=1"
    config: Json = {"cniVersion": "1.1.0", "name": "n", "type": "firewall", "backend": "firewalld"}

    error = walls.machine.refused("firewall", "STATUS", config)

    assert error["code"] == 50


@pytest.mark.without_engine(reason="compares two programs")
def test_sources_of_the_reference(walls: Walls, firewalld: Firewalld) -> None:
    """The Go plugin makes the same sources, and each removes the other's."""
    walls.attach()
    config = walls.config(cniVersion="1.0.0", backend="firewalld")
    config["prevResult"] = {**config["prevResult"], "cniVersion": "1.0.0"}
    netns = walls.netns["c1"]

    walls.machine.reference("firewall", "ADD", config, netns)
    theirs = firewalld.sources()
    walls.call("CHECK", config)
    walls.call("DEL", config)
    between = firewalld.sources()
    walls.call("ADD", config)
    ours = firewalld.sources()
    walls.machine.reference("firewall", "DEL", config, netns)

    assert (len(theirs), between) == (2, [])
    assert (ours, firewalld.sources()) == (theirs, [])


BUS = """
import os, socket, struct, sys, threading
def pad(b, n): return b + bytes(-len(b) % n)
def s(x): return struct.pack("<I", len(x)) + x.encode() + bytes(1)
def message(kind, reply, sig, body, error=""):
    out = b""
    strings = [(7, "s", s(":1.1")), *([(4, "s", s(error))] if error else [])]
    for code, t, v in [(5, "u", struct.pack("<I", reply)), *strings,
                       (8, "g", bytes([len(sig)]) + sig.encode() + bytes(1))]:
        out = pad(out, 8) + bytes([code, 1]) + t.encode() + bytes(1) + v
    head = b"l" + bytes([kind, 0, 1]) + struct.pack("<III", len(body), reply, len(out))
    return pad(head + out, 8) + body
def client(c):
    buf = b""
    while not buf.endswith(b"\\r\\n"): buf += c.recv(1)
    c.sendall(b"OK 1234\\r\\n")
    buf = b""
    while not buf.endswith(b"BEGIN\\r\\n"): buf += c.recv(1)
    while m := c.recv(65536):
        (serial,) = struct.unpack_from("<I", m, 8)
        if b"Hello" in m: c.sendall(message(2, serial, "s", s(":1.1")))
        elif b"NameHasOwner" in m: c.sendall(message(2, serial, "b", struct.pack("<I", 1)))
        elif sys.argv[2] == "refuses":
            name = "org.fedoraproject.FirewallD1.NotAuthorizedException"
            c.sendall(message(3, serial, "s", s("Not Authorized(uid)"), name))
l = socket.socket(socket.AF_UNIX); l.bind(sys.argv[1]); l.listen(9)
while True: threading.Thread(target=client, args=(l.accept()[0],), daemon=True).start()
"""


@pytest.fixture
def bus(machine: Machine, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a message bus whose firewalld refuses everything, or answers nothing."""
    path = tmp_path / "unwilling"
    process = subprocess.Popen([sys.executable, "-c", BUS, str(path), request.param])
    try:
        wait_until(path.exists, "the bus does not come up")
        machine.variables["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={path}"
        yield str(request.param)
    finally:
        process.kill()
        process.wait()


@pytest.mark.without_engine(reason="shortens the time for an answer")
@pytest.mark.parametrize("bus", ["refuses", "hangs"], indirect=True)
def test_unwilling_firewalld(walls: Walls, bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a backend named nftables takes over, the log says so, and DEL needs no consent."""
    monkeypatch.setattr("plugins.firewall.dbus._SECONDS", 0.5)
    walls.shell("iptables -P FORWARD DROP")
    walls.attach()

    walls.ok("ADD")

    assert walls.reaches("c1", "outside")
    walls.ok("DEL")
    assert (walls.rules(), walls.records()) == ([], [])
    assert any("takes nftables instead" in line for line in walls.machine.log), bus


@pytest.mark.parametrize("bus", ["refuses"], indirect=True)
def test_refusal_where_firewalld_is_named(walls: Walls, bus: str) -> None:
    """The ADD is refused in the end, and neither its way back nor DEL asks firewalld again."""
    walls.attach()

    error = walls.machine.refused(
        "firewall", "ADD", walls.config(backend="firewalld"), walls.netns["c1"], containerid="c1"
    )

    assert "Not Authorized" in error["msg"], bus
    assert walls.records() == []
    walls.ok("DEL", backend="firewalld")
