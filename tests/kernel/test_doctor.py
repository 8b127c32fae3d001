"""`pycni doctor` on a pretend host: each line is right, and its level decides the exit status."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cni_common.spec.names import VERSION
from commands import DONE, FOUND, LACKING
from commands.doctor import kernel, state
from commands.doctor.kernel import _try
from tests.kernel import forked
from tests.machine import CNI_BIN, Json, Machine, files_below
from tests.waits import wait_until

Lines = dict[str, dict[str, str]]
pytestmark = pytest.mark.without_engine("the commands know nothing of it")


class Doctor:
    """A directory with one network, and the doctor's view of it."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self.directory = directory
        a, b = uuid4().bytes[:2]
        self.ranges = [[{"subnet": f"10.{a}.{b}.0/29"}]]
        self.conf: Json = machine.network(
            isGateway=True,
            ipMasq=True,
            ipam={"type": "host-local", "dataDir": machine.data_dir, "ranges": self.ranges},
        )
        self.plugins = directory.parent / "bin"  # each is asked for its versions: two, for speed
        self.plugins.mkdir()
        self._link("bridge", "host-local")

    def _link(self, *types: str) -> None:
        for type in types:
            if (CNI_BIN / type).exists() and not (self.plugins / type).exists():
                (self.plugins / type).symlink_to(CNI_BIN / type)

    def write(self, *chained: Json, **keys: object) -> None:
        """Write the network, with plugins behind the bridge."""
        top = {"cniVersion": "1.0.0", "name": self.machine.name}
        bridge = {**{key: self.conf[key] for key in self.conf.keys() - top.keys()}, **keys}
        content = {**top, "plugins": [bridge, *chained]}
        self._link(*{str(one["type"]) for one in chained})
        (self.directory / "10-net.conflist").write_text(json.dumps(content))

    def words(self, *more: str) -> list[str]:
        """Return the words behind `pycni`."""
        places = ("--state-dir", self.machine.state_dir, "--data-dir", self.machine.data_dir)
        return [
            "doctor",
            "--any-netns",
            *places,
            "--path",
            str(self.plugins),
            str(self.directory),
            *more,
        ]

    def ask(self) -> tuple[int, Lines]:
        """Return the exit status and the lines by subject."""
        done = forked.pycni(self.machine.host, *self.words("--json"))
        assert not done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        levels = [one["level"] for one in answer["lines"]]
        assert answer["worst"] == max(levels, key=("ok", "warning", "error").index)
        assert done.returncode == {"ok": DONE, "warning": FOUND, "error": LACKING}[answer["worst"]]
        return done.returncode, {one["subject"]: one for one in answer["lines"]}


@pytest.fixture
def doctor(machine: Machine, tmp_path: Path) -> Doctor:
    """A network that works."""
    directory = tmp_path / "net.d"
    directory.mkdir()
    found = Doctor(machine, directory)
    found.write()
    return found


def test_well(doctor: Doctor) -> None:
    """A working network has no error, and its lines say what was looked at."""
    status, lines = doctor.ask()

    assert status in (DONE, FOUND)  # the machine below the tests may have its own troubles
    assert [one for one in lines.values() if one["level"] == "error"] == []
    assert lines[str(doctor.directory)]["text"] == "1 file, clean"
    assert doctor.machine.name in lines["an ADD could work now"]["text"]
    assert lines["interfaces of kind bridge"]["level"] == "ok"
    assert lines["leftovers"]["text"] == "none"
    assert lines["engine"]["level"] == "ok"
    assert "bridge" in lines[f"pycni {VERSION}"]["text"]


def test_newest_version(doctor: Doctor) -> None:
    """That other nodes have older runtimes is no matter of this one."""
    path = doctor.directory / "10-net.conflist"
    path.write_text(path.read_text().replace('"cniVersion": "1.0.0"', '"cniVersion": "1.1.0"'))

    assert doctor.ask()[1][str(doctor.directory)]["text"] == "1 file, clean"


def test_text(doctor: Doctor) -> None:
    """The page fits into 80 columns, and each thing that is not right has a remedy."""
    doctor.write({"type": "no-such-plugin"})

    done = forked.pycni(doctor.machine.host, *doctor.words())

    assert done.returncode == LACKING
    assert all(
        len(line) <= 80 or max(map(len, line.split())) > 60 for line in done.stdout.splitlines()
    )
    assert "  error    no-such-plugin: a configuration names it" in done.stdout
    assert "           -> install the plugin there" in done.stdout
    assert " error" in done.stdout.splitlines()[-1]


def test_subnet_of_others(doctor: Doctor) -> None:
    """Findings of lint on this node, such as a route to the subnet over another interface."""
    machine = doctor.machine
    (subnet,) = (one["subnet"] for one in doctor.ranges[0])
    machine.do(machine.host, "ip link add lan0 type bridge", "ip link set lan0 up")
    machine.do(machine.host, f"ip route add {subnet} dev lan0")

    line = doctor.ask()[1][str(doctor.directory)]

    assert line["level"] == "error"
    assert f"'lan0' of this node has {subnet}" in line["text"]
    assert line["remedy"] == f"pycni lint --node {doctor.directory}"


def test_refused(doctor: Doctor) -> None:
    """Findings of lint, and the answer of STATUS."""
    doctor.write(vlan=5000)

    status, lines = doctor.ask()

    assert status == LACKING
    assert "pycni lint" in lines[str(doctor.directory)]["remedy"]
    assert "VLAN ID 5000" in lines[f"network '{doctor.machine.name}'"]["text"]


DROPS = "{ type filter hook forward priority 0; policy drop; }"
ACCEPTS = "{ type filter hook forward priority 0; policy accept; }"


@pytest.mark.parametrize(
    "line",
    [
        f"nft add table ip filter; nft add chain ip filter FORWARD '{DROPS}'",
        "iptables-nft -A FORWARD -s 192.0.2.0/24 -j ACCEPT; iptables-nft -A FORWARD -j REJECT",
        "iptables-legacy -P FORWARD DROP",
        "iptables-legacy -A FORWARD -j REJECT",
    ],
)
def test_forwarded_packets_are_dropped(doctor: Doctor, line: str) -> None:
    """The chain that drops is named, and a plugin in the list that admits is enough."""
    machine = doctor.machine
    assert doctor.ask()[1]["forwarded packets"]["level"] == "ok"
    machine.command(machine.host, "sh", "-c", line)

    dropped = doctor.ask()[1]["forwarded packets"]
    doctor.write({"type": "firewall"})
    admitted = doctor.ask()[1]["forwarded packets"]

    assert dropped["level"] == "warning"
    assert "chain FORWARD" in dropped["text"]
    assert machine.name in dropped["text"]
    assert 'add {"type":"firewall"} to the list' in dropped["remedy"]
    assert (admitted["level"], "chain FORWARD" in admitted["text"]) == ("ok", True)


@pytest.mark.parametrize(
    "accept",
    [
        "ip saddr {subnet} accept",
        "ip daddr {{ 192.0.2.0/24, {subnet} }} accept",
        'iifname "{bridge}" accept',
        "jump pods",
    ],
)
def test_forwarded_packets_of_others(doctor: Doctor, accept: str) -> None:
    """In a chain of another program no plugin admits anything, but a rule for the subnet does."""
    machine = doctor.machine
    doctor.write({"type": "firewall"})
    (subnet,) = (one["subnet"] for one in doctor.ranges[0])
    table = "table inet site { chain pods { ip saddr %s accept\n }\n chain passing %s\n }"
    machine.command(machine.host, "nft", table % (subnet, DROPS.replace(" }", "\n }")))

    dropped = doctor.ask()[1]["forwarded packets"]
    rule = accept.format(subnet=subnet, bridge=doctor.conf["bridge"])
    machine.command(machine.host, "nft", f"add rule inet site passing {rule}")
    accepted = doctor.ask()[1]["forwarded packets"]

    assert dropped["level"] == "warning"
    assert "policy of table inet site, chain passing" in dropped["text"]
    assert "nft list chain inet site passing" in dropped["remedy"]
    assert (accepted["level"], "inet site" in accepted["text"]) == ("ok", True)


@pytest.mark.parametrize(
    "line",
    [
        f"nft add table ip6 filter; nft add chain ip6 filter FORWARD '{DROPS}'",
        f"nft add table inet site; nft add chain inet site c '{ACCEPTS}';"
        " nft add rule inet site c ct state invalid drop",
        f"nft add table inet site; nft add chain inet site c '{ACCEPTS}';"
        " nft add rule inet site c drop; nft add rule inet site c counter accept",
        "iptables-legacy -A FORWARD -s 192.0.2.0/24 -j DROP",
    ],
)
def test_forwarded_packets_pass(doctor: Doctor, line: str) -> None:
    """Of another family, by a rule for some packets alone."""
    doctor.machine.command(doctor.machine.host, "sh", "-c", line)

    assert doctor.ask()[1]["forwarded packets"]["level"] == "ok"


def test_full(doctor: Doctor) -> None:
    """A range without a free address."""
    subnet = doctor.ranges[0][0]["subnet"]
    directory = Path(doctor.machine.data_dir, doctor.machine.name)
    directory.mkdir(parents=True)
    base = subnet.partition("/")[0].rpartition(".")[0]

    (directory / f"{base}.2").write_text("a\r\neth0")
    first = doctor.ask()[1][f"{doctor.machine.name} {subnet}"]
    for number in range(3, 7):
        (directory / f"{base}.{number}").write_text("a\r\neth0")
    full = doctor.ask()[1][f"{doctor.machine.name} {subnet}"]

    assert (first["level"], first["text"]) == ("ok", "1 of 6 addresses are given out")
    assert (full["level"], full["text"]) == ("error", "5 of 6 addresses are given out")


def test_leftovers(doctor: Doctor) -> None:
    """Objects of a dead container are counted, and those that a living one lacks."""
    machine = doctor.machine
    with ExitStack() as stack:
        living = machine.container()
        stack.enter_context(machine.process_in(living))
        machine.ok("bridge", "ADD", doctor.conf, living, containerid="alive")
        container, ports = machine.container(), machine.ports()
        machine.ok("bridge", "ADD", doctor.conf, container, containerid="dead")
        machine.forget(container)
        wait_until(lambda: machine.ports() == ports, "the kernel keeps the veth")
        left = doctor.ask()
        machine.command(machine.host, "nft", "flush", "ruleset")
        lost = doctor.ask()

    assert left[1]["leftovers"]["level"] == "warning"
    assert "pycni reclaim" in left[1]["leftovers"]["remedy"]
    assert (left[1]["missing objects"]["level"], lost[1]["missing objects"]["level"]) == (
        "ok",
        "error",
    )
    assert lost[0] == LACKING
    assert lost[1]["missing objects"]["remedy"].startswith("pycni repair --all")


def test_only_by_a_start(doctor: Doctor) -> None:
    """An object that repair cannot put back has another remedy."""
    machine = doctor.machine
    netns = machine.container()
    with machine.process_in(netns):
        machine.ok("bridge", "ADD", doctor.conf, netns, containerid="alive")
        machine.command(netns, "ip", "link", "set", "eth0", "mtu", "1400")
        line = doctor.ask()[1]["missing objects"]

    assert line["level"] == "error"
    assert line["remedy"].startswith("only a start of their containers anew makes them")


def test_lock(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that holds a lock for too long is named by its process."""
    machine = doctor.machine
    container = machine.container()
    machine.ok("bridge", "ADD", doctor.conf, container, containerid="c1")
    record = next(path for path in files_below(machine.state_dir) if "/attachments/bridge" in path)
    assert doctor.ask()[1]["locks"]["level"] == "ok"

    monkeypatch.setattr(state, "_LOCK_SECONDS", 0)
    with open(record, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        _, lines = doctor.ask()

    assert lines[record]["level"] == "warning"
    assert "holds the lock" in lines[record]["text"]


def test_strict_rp_filter(doctor: Doctor) -> None:
    """Strict where a container's address is routed elsewhere: its packets are dropped."""
    machine = doctor.machine
    netns = machine.container()
    added = machine.ok("bridge", "ADD", doctor.conf, netns, containerid="c1")
    address = added["ips"][0]["address"].partition("/")[0]
    bridge = added["interfaces"][0]["name"]
    machine.command(machine.host, "sysctl", "-qw", f"net.ipv4.conf.{bridge}.rp_filter=1")
    _, before = doctor.ask()
    machine.do(
        machine.host,
        "ip link add other type bridge",
        "ip link set other up",
        f"ip route add {address}/32 dev other",
    )
    _, after = doctor.ask()

    subject = f"net.ipv4.conf.{bridge}.rp_filter"
    assert subject not in before
    assert before["net.ipv4.conf.*.rp_filter"]["level"] == "ok"
    assert after[subject]["level"] == "error"
    assert f"{address} behind '{bridge}' leads over 'other'" in after[subject]["text"]
    ping = ("ping", "-c1", "-W1", "-I", address, added["ips"][0]["gateway"])
    with pytest.raises(AssertionError):
        machine.command(netns, *ping)
    machine.command(machine.host, "ip", "route", "del", f"{address}/32", "dev", "other")
    wait_until(lambda: machine.try_command(netns, *ping).returncode == 0, "it stays away")


def test_changed_mac(doctor: Doctor) -> None:
    """An end of a container whose MAC another program has changed."""
    machine = doctor.machine
    machine.ok("bridge", "ADD", doctor.conf, machine.container(), containerid="c1")
    assert doctor.ask()[1]["udev"]["level"] == "ok"
    (port,) = machine.ports()
    machine.command(machine.host, "ip", "link", "set", port, "address", "02:00:00:00:00:99")

    line = doctor.ask()[1]["udev"]

    assert line["level"] == "warning"
    assert f"the MAC of '{port}'" in line["text"]
    assert "50-pycni.link" in line["remedy"]


@pytest.mark.parametrize("where", ["records", "leases"])
def test_clock(doctor: Doctor, where: str) -> None:
    """A clock that is behind what calls have dated."""
    machine = doctor.machine
    machine.ok("bridge", "ADD", doctor.conf, machine.container(), containerid="c1")
    assert doctor.ask()[1]["clock"]["level"] == "ok"
    path = next(Path(machine.data_dir, machine.name).glob("10.*"))
    if where == "records":
        path = next(Path(machine.state_dir, "attachments").iterdir())
    os.utime(path, (4_000_000_000, 4_000_000_000))

    line = doctor.ask()[1]["clock"]

    assert line["level"] == "warning"
    assert f"{path} was changed at 2096-10-02T07:06:40Z" in line["text"]


def test_no_daemon(doctor: Doctor) -> None:
    """An IPAM plugin's daemon that does not answer."""
    doctor.write(ipam={"type": "dhcp", "daemonSocketPath": "/run/no-such.sock"})

    status, lines = doctor.ask()

    assert status == LACKING
    assert lines["/run/no-such.sock"]["level"] == "error"


def test_kinds_of_interfaces(machine: Machine) -> None:
    """A kind that no kernel has is missing, one that this kernel has is made and goes again."""
    before = machine.command(machine.host, "ip", "link")

    assert _try("no-such-kind") == kernel._ABSENT
    assert _try("bridge") == kernel._TRIED
    assert machine.command(machine.host, "ip", "link") == before
