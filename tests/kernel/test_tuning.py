"""tuning on a real kernel: what it sets and gives back, what is refused, failures, GC."""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cni_common.node.liveness import GRACE_SECONDS
from plugins.tuning import sysctl
from tests.faults.inprocess import INJECTED, KILLED, Fault, Terminated, faulty
from tests.kernel.sweeps import faults, rehearsal
from tests.machine import REFERENCE_BIN, ROOT, Json, Machine, error_of, files_below
from tests.scope import ALL
from tests.waits import GENEROUS

alone = pytest.mark.without_engine(reason="fails in this process")
MAC = "02:00:00:00:12:34"
SYSCTLS = {
    "net.core.somaxconn": "77",
    "net.ipv4.conf.IFNAME.arp_notify": "1",
    "net.ipv4.tcp_rmem": "4096 131072 7000000",
}
KEYS = ("mac", "mtu", "promisc", "allmulti", "txQLen", "sysctl")


def config(machine: Machine, **keys: Any) -> Json:
    """Return a configuration behind a plugin that has made eth0."""
    own = {"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500, "sandbox": "/n"}
    return {
        "cniVersion": "1.1.0",
        "name": machine.name,
        "type": "tuning",
        "dataDir": f"{machine.data_dir}/tuning",
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "br0", "mac": own["mac"], "mtu": 1500}, own],
            "ips": [{"address": "10.5.0.5/24", "interface": 1}],
        },
        **keys,
    }


def full(machine: Machine, **keys: Any) -> Json:
    """Return a configuration that sets everything there is."""
    modes = {"promisc": True, "allmulti": True, "txQLen": 77}
    return config(machine, **{"mac": MAC, "mtu": 1400, "sysctl": SYSCTLS, **modes, **keys})


def container(machine: Machine) -> str:
    """Return a container with an eth0 of its own."""
    netns = machine.container()
    machine.do(netns, "ip link add eth0 type veth peer name peer0", "ip link set eth0 up")
    return netns


def state(machine: Machine, netns: str) -> Json:
    """Return all that tuning may change in a container."""
    link = machine.link(netns, "eth0") or {}
    paths = [sysctl.path_of(key, "eth0") for key in SYSCTLS]
    values = machine.command(netns, "cat", *(f"/proc/sys/{path}" for path in paths)).splitlines()
    return {
        "flags": sorted({"PROMISC", "ALLMULTI"} & set(link.get("flags", ()))),
        **{key: link.get(key) for key in ("address", "mtu", "txqlen")},
        **{path: value.split() for path, value in zip(paths, values, strict=True)},
    }


def files(machine: Machine) -> list[str]:
    """Return the files of records and of the reference's kind."""
    return [*files_below(machine.state_dir), *files_below(machine.data_dir)]


# --- what is set and given back ----------------------------------------------------------------


@pytest.mark.both_edges
def test_add_and_delete(machine: Machine) -> None:
    """Everything is as configured after ADD, passes CHECK, and is as it was after DEL."""
    netns, conf = container(machine), full(machine)
    before = state(machine, netns)

    result = machine.ok("tuning", "ADD", conf, netns)

    assert state(machine, netns) == {
        "flags": ["ALLMULTI", "PROMISC"],
        "address": MAC,
        "mtu": 1400,
        "txqlen": 77,
        "net/core/somaxconn": ["77"],
        "net/ipv4/conf/eth0/arp_notify": ["1"],
        "net/ipv4/tcp_rmem": ["4096", "131072", "7000000"],
    }
    assert [(entry.get("mac"), entry["mtu"]) for entry in result["interfaces"]] == [
        ("02:00:00:00:00:01", 1500),
        (MAC, 1400),
    ]
    machine.ok("tuning", "CHECK", {**conf, "prevResult": result}, netns)
    machine.ok("tuning", "DEL", conf, netns)
    machine.ok("tuning", "DEL", conf, netns)
    assert state(machine, netns) == before
    assert files(machine) == []


@pytest.mark.parametrize("key", KEYS)
def test_one_key(machine: Machine, key: str) -> None:
    """Each key by itself changes its own thing, and DEL gives that back."""
    netns = container(machine)
    conf = config(machine, **{key: full(machine)[key]})
    before = state(machine, netns)

    machine.ok("tuning", "ADD", conf, netns)

    changed = [name for name, value in state(machine, netns).items() if value != before[name]]
    assert len(changed) == (len(SYSCTLS) if key == "sysctl" else 1)
    machine.ok("tuning", "CHECK", conf, netns)
    machine.ok("tuning", "DEL", conf, netns)
    assert state(machine, netns) == before


def test_nothing(machine: Machine) -> None:
    """Podman's bare tuning passes prevResult on, and leaves not even a record."""
    conf = config(machine, promisc=False, mtu=0)

    result = machine.ok("tuning", "ADD", conf, container(machine))

    assert result == conf["prevResult"]
    assert files(machine) == []


def test_sources_of_the_mac(machine: Machine) -> None:
    """The capability beats args.cni, that beats CNI_ARGS, and that the configuration."""
    by_runtime = {"runtimeConfig": {"mac": "02:00:00:00:00:12"}}
    by_args = {"args": {"cni": {"mac": "02:00:00:00:00:13", "sysctl": {"net.core.somaxconn": "9"}}}}
    seen = []
    for keys, args in (
        ({}, ""),
        ({}, "MAC=02:00:00:00:00:11;IP=10.0.0.1"),
        (by_args, "MAC=02:00:00:00:00:11"),
        ({**by_runtime, **by_args}, "MAC=02:00:00:00:00:11"),
    ):
        netns, conf = container(machine), config(machine, mac="02:00:00:00:00:10", **keys)
        machine.ok("tuning", "ADD", conf, netns, args=args)
        seen.append(state(machine, netns)["address"][-2:])
        last = state(machine, netns)["net/core/somaxconn"]
        machine.ok("tuning", "DEL", conf, netns)

    assert (seen, last) == (["10", "11", "13", "12"], ["9"])


def test_interface_with_a_dot(machine: Machine) -> None:
    """IFNAME may stand for a name with dots, which can be written with slashes, too."""
    netns = machine.container()
    machine.do(netns, "ip link add eth0.5 type veth peer name peer0")
    names = {"net.ipv4.conf.IFNAME.arp_notify": "1", "net/ipv4/conf/eth0.5/forwarding": "1"}

    machine.ok("tuning", "ADD", config(machine, sysctl=names), netns, ifname="eth0.5")

    words = [f"/proc/sys/net/ipv4/conf/eth0.5/{name}" for name in ("arp_notify", "forwarding")]
    assert machine.command(netns, "cat", *words).split() == ["1", "1"]


def test_sysctl_that_is_written_only(machine: Machine) -> None:
    """One that cannot be read is set all the same."""
    netns = container(machine)
    conf = config(machine, sysctl={"net.ipv4.route.flush": "1"})

    machine.ok("tuning", "ADD", conf, netns)
    machine.ok("tuning", "CHECK", conf, netns)
    machine.ok("tuning", "DEL", conf, netns)


def test_changed_since(machine: Machine) -> None:
    """DEL spares a sysctl that was changed since."""
    netns, conf = container(machine), full(machine)
    machine.ok("tuning", "ADD", conf, netns)
    machine.do(netns, "sysctl -qw net.core.somaxconn=99")

    machine.ok("tuning", "DEL", conf, netns)

    after = state(machine, netns)
    assert (after["net/core/somaxconn"], after["mtu"]) == (["99"], 1500)


def test_repeated_add(machine: Machine) -> None:
    """A second ADD does not take what the first has set for what there was."""
    netns, conf = container(machine), full(machine)
    before = state(machine, netns)

    machine.ok("tuning", "ADD", conf, netns)
    machine.ok("tuning", "ADD", {**conf, "mtu": 1300}, netns)

    assert state(machine, netns)["mtu"] == 1300
    machine.ok("tuning", "DEL", conf, netns)
    assert state(machine, netns) == before


def test_backlog_of_a_listener(machine: Machine) -> None:
    """A program in the container gets the queue that the profile for many connections allows."""
    text = (ROOT / "conf" / "62-tuning-connections.conflist").read_text()
    conf = config(machine, sysctl=json.loads(text)["plugins"][1]["sysctl"])
    script = (
        "import socket, subprocess; s = socket.create_server(('127.0.0.1', 99), backlog=65535);"
        "print(subprocess.run(['ss', '-Hltn'], capture_output=True, text=True).stdout)"
    )
    netns = container(machine)
    machine.do(netns, "ip link set lo up")

    before = machine.command(netns, "python3", "-c", script).split()[2]
    machine.ok("tuning", "ADD", conf, netns)
    after = machine.command(netns, "python3", "-c", script).split()[2]

    assert int(before) < int(after) == 65535


def test_congestion_control(machine: Machine) -> None:
    """BBR is set where the host allows it to containers; otherwise ADD says that it is not."""
    netns = container(machine)
    path = "/proc/sys/net/ipv4/tcp_congestion_control"
    before = machine.command(netns, "cat", path)
    allowed = machine.command(netns, "cat", "/proc/sys/net/ipv4/tcp_allowed_congestion_control")
    conf = config(machine, sysctl={"net.ipv4.tcp_congestion_control": "bbr"})

    reply = machine.invoke("tuning", "ADD", conf, netns)

    assert (reply.exit_code == 0) == ("bbr" in allowed.split()), reply.stdout
    assert machine.command(netns, "cat", path) == ("bbr\n" if reply.exit_code == 0 else before)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        *(
            "kernel.core_pattern",
            "kernel/core_pattern",
            "vm.swappiness",
            "net",
            "net.",
            ".net.core",
        ),
        *("net/../kernel/core_pattern", "net/ipv4/../../kernel/core_pattern", "net..kernel"),
        *("net//ipv4/ip_forward", "net/./ipv4/ip_forward", "/net/ipv4/ip_forward", ""),
        *(
            "net.ipv4.ip_forward\n",
            "net.ipv4.ip forward",
            "net.ipv4.\0",
            "../sys/net/core/somaxconn",
        ),
        *("net.core.somaxconn+kernel.core_pattern=|/x", "net.ipv4.\ud800", "net." + "x" * 300),
        *("net.can.x", "net.nf_conntrack_max", "net.core.netdev_max_backlog", "net.ipv4.nonsense"),
    ],
)
def test_names_that_are_refused(arena: Machine, key: str) -> None:
    """No name leads out of the container's net.*, and nothing is set before that is found."""
    netns = container(arena)
    before = state(arena, netns)
    conf = config(arena, mtu=1400, sysctl={"net.core.somaxconn": "77", key: "1"})

    error = arena.refused("tuning", "ADD", conf, netns)

    assert error["code"] == 7
    assert state(arena, netns) == before
    assert files(arena) == []


@pytest.mark.parametrize(
    "value", ["", " ", "1\n2", "1\nkernel.core_pattern=x", "\0", "\x1b[0m", "1" * 2000]
)
def test_values_that_are_refused(arena: Machine, value: str) -> None:
    """A value is one line that can be printed (CVE-2022-0811)."""
    conf = config(arena, sysctl={"net.core.somaxconn": value})

    assert arena.refused("tuning", "ADD", conf, container(arena))["code"] == 7


@pytest.mark.parametrize(
    ("keys", "code", "says"),
    [
        ({"sysctl": {"net.core.somaxconn": 77}}, 7, "sysctl"),
        ({"sysctl": {"net.core.somaxconn": "x"}}, 999, "somaxconn"),
        ({"sysctl": {"net.core.somaxconn": "1", "net/core/somaxconn": "2"}}, 7, "duplicated"),
        ({"sysctl": {"net.ipv4.neigh.default.gc_thresh3": "1"}}, 7, "set it on the host"),
        ({"mac": "02:00"}, 7, "MAC"),
        ({"mac": "01:00:00:00:00:01"}, 7, "MAC"),
        ({"mtu": -1}, 7, "mtu"),
        ({"mtu": 60}, 999, "MTU"),
        ({"txQLen": -1}, 7, "txQLen"),
        ({"dataDir": "relative"}, 7, "dataDir"),
        ({"prevResult": None, "mtu": 1400}, 7, "prevResult"),
    ],
)
def test_refused(arena: Machine, keys: Json, code: int, says: str) -> None:
    """An impossible configuration is refused by name, and all is as it was."""
    netns = container(arena)
    before = state(arena, netns)

    error = arena.refused("tuning", "ADD", config(arena, **{"txQLen": 7, **keys}), netns)

    assert (error["code"], says in error["msg"]) == (code, True), error
    assert state(arena, netns) == before
    assert files(arena) == []


def test_sysctl_twice_in_json(machine: Machine) -> None:
    """A name that JSON has twice is refused, as the reference does."""
    text = json.dumps(config(machine, sysctl={"net.core.somaxconn": "1"}))
    text = text.replace('"net.core.somaxconn": "1"', '"net.core.x": "1", "net.core.x": "2"')
    program = ROOT / ".tools" / "cni" / "tuning"
    environ = machine.environ("ADD", container(machine))

    done = machine.try_command(machine.host, str(program), stdin=text, env=environ)

    assert "duplicated sysctl keys are not allowed: net.core.x" in error_of(done.stdout)["msg"]


def test_a_container_id_too_long_for_a_file_name(machine: Machine) -> None:
    """Sysctls need no backup file, so its name may be too long: DEL succeeds, also twice."""
    netns = container(machine)
    conf = config(machine, sysctl={"net.core.somaxconn": "99"})

    for command in ("ADD", "ADD", "DEL", "DEL"):
        machine.ok("tuning", command, conf, netns, containerid="a" * 300)

    assert files_below(machine.state_dir) == {}


def test_small_mtu_with_ipv6(machine: Machine) -> None:
    """An MTU by which the kernel would take the IPv6 addresses away is refused."""
    conf = config(machine, mtu=1279)
    machine.ok("tuning", "ADD", conf, container(machine), containerid="c2")
    conf["prevResult"]["ips"].append({"address": "fd05::5/64", "interface": 1})

    assert "1280" in machine.refused("tuning", "ADD", conf, container(machine))["msg"]


@pytest.mark.parametrize(
    ("lines", "key", "code"),
    [
        ("^net\\.core\\.somaxconn$\n", "net.core.somaxconn", 0),
        ("\n  ^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$  \n", "net.ipv4.conf.IFNAME.arp_notify", 0),
        ("^net\\.core\\.somaxconn$\n", "net.ipv4.ip_forward", 7),
        ("", "net.core.somaxconn", 7),
        ("net.core\n(", "net.core.somaxconn", 5),
        ("kernel", "kernel.core_pattern", 7),
    ],
)
def test_allowlist(
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    lines: str,
    key: str,
    code: int,
) -> None:
    """The node's file decides which sysctls may be set, and STATUS says so beforehand."""
    path = tmp_path / "allowlist.conf"
    path.write_text(lines)
    monkeypatch.setattr(sysctl, "ALLOWLIST", str(path))
    conf = config(machine, sysctl={key: "1"})

    replies = [machine.invoke("tuning", "ADD", conf, container(machine))]
    replies.append(machine.invoke("tuning", "STATUS", conf))

    codes = [json.loads(reply.stdout or b"{}").get("code", 0) for reply in replies]
    assert codes == [code, code]


# --- DEL, CHECK, GC ------------------------------------------------------------------------------


@pytest.mark.both_edges
@pytest.mark.parametrize("namespace", ["gone", "another"])
def test_delete_without_namespace(machine: Machine, namespace: str) -> None:
    """Record and file go; an interface of the namespace that has the path by now is not touched."""
    netns, conf = container(machine), full(machine)
    machine.ok("tuning", "ADD", conf, netns)
    other = container(machine)
    before = state(machine, other)

    machine.ok("tuning", "DEL", conf, "/no/such/netns" if namespace == "gone" else other)

    assert state(machine, other) == before
    assert files(machine) == []


@pytest.mark.parametrize("change", [{"sysctl": 5}, {"mac": "x"}, {"prevResult": 7}, {"mtu": "x"}])
def test_delete_with_a_broken_configuration(machine: Machine, change: Json) -> None:
    """DEL goes by the record."""
    netns, conf = container(machine), full(machine)
    before = state(machine, netns)
    machine.ok("tuning", "ADD", conf, netns)

    machine.ok("tuning", "DEL", {**conf, **change}, netns)

    assert state(machine, netns) == before
    assert files(machine) == []


@pytest.mark.parametrize("key", ["mac", "mtu", "promisc", "allmulti", "txQLen"])
def test_the_reference_in_our_place(machine: Machine, key: str) -> None:
    """Either gives back what the other has changed of an interface."""
    netns = container(machine)
    conf = config(machine, **{key: full(machine)[key]})
    before = state(machine, netns)

    machine.reference("tuning", "ADD", conf, netns, path=str(REFERENCE_BIN))
    theirs = state(machine, netns)
    machine.ok("tuning", "DEL", conf, netns)
    assert state(machine, netns) == before
    assert files(machine) == []

    machine.ok("tuning", "ADD", conf, netns)
    assert state(machine, netns) == theirs
    machine.reference("tuning", "DEL", conf, netns, path=str(REFERENCE_BIN))
    assert state(machine, netns) == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ip link set eth0 mtu 1450", "mtu of 'eth0' is 1450, it should be 1400"),
        ("ip link set eth0 address 02:00:00:00:00:99", "mac of"),
        ("ip link set eth0 promisc off", "promisc of"),
        ("ip link set eth0 allmulticast off", "allmulti of"),
        ("ip link set eth0 txqueuelen 5", "txQLen of"),
        ("sysctl -qw net.core.somaxconn=5", "sysctl net/core/somaxconn is '5'"),
        ("ip link del eth0", "missing"),
    ],
)
def test_check_tells(machine: Machine, line: str, says: str) -> None:
    """A setting that is no longer as configured is named."""
    netns = container(machine)
    conf = full(machine, sysctl={"net.core.somaxconn": "0x4d"})
    machine.ok("tuning", "ADD", conf, netns)
    machine.ok("tuning", "CHECK", conf, netns)

    machine.do(netns, line)

    assert says in machine.refused("tuning", "CHECK", conf, netns)["msg"]


@pytest.mark.both_edges
def test_gc(machine: Machine) -> None:
    """GC forgets what is neither listed nor alive."""
    conf = full(machine)
    living = container(machine)
    for name in ("dead", "listed", "living"):
        netns = living if name == "living" else container(machine)
        machine.ok("tuning", "ADD", conf, netns, containerid=name)
        if name != "living":
            machine.forget(netns)
    for path in map(Path, files_below(machine.state_dir)):
        os.utime(path, (path.stat().st_mtime - GRACE_SECONDS - 60,) * 2)

    with machine.process_in(living):
        listed = [{"containerID": "listed", "ifname": "eth0"}]
        machine.ok("tuning", "GC", {**conf, "cni.dev/valid-attachments": listed})

    names = sorted(Path(path).name for path in files_below(f"{machine.data_dir}/tuning"))
    assert names == ["listed_eth0.json", "living_eth0.json"]
    assert len(files_below(machine.state_dir)) == 2


def test_storm(machine: Machine) -> None:
    """Many containers at once, each of whose settings are its own, and nothing is left."""

    def rounds(number: int) -> None:
        netns = container(machine)
        conf = full(machine, mtu=1300 + number)
        before = state(machine, netns)
        for _ in range(3):
            machine.ok("tuning", "ADD", conf, netns, containerid=f"c{number}")
            machine.ok("tuning", "CHECK", conf, netns, containerid=f"c{number}")
            assert state(machine, netns)["mtu"] == 1300 + number
            machine.ok("tuning", "DEL", conf, netns, containerid=f"c{number}")
            assert state(machine, netns) == before

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(rounds, range(12)))

    assert files(machine) == []


# --- failures ------------------------------------------------------------------------------------


@alone
def test_any_failure_of_an_add_is_taken_back(machine: Machine) -> None:
    """If any operation fails, ADD says so, and all is as it was."""
    netns, conf = container(machine), full(machine)
    before = state(machine, netns)
    failed = 0

    for fault in faults(rehearsal(machine, "tuning", "ADD", conf, netns)):
        with faulty(machine, fault) as host:
            reply = machine.invoke("tuning", "ADD", conf, netns, host=host)
        if not fault.happened:
            break
        if reply.exit_code == 0:
            assert fault.what == "open namespace"  # only to see whether it is the host's
            machine.ok("tuning", "DEL", conf, netns)
            continue
        failed += 1
        assert state(machine, netns) == before, fault.what
        assert files(machine) == [], fault.what
        assert INJECTED in error_of(reply.stdout)["msg"], fault.what

    assert failed > (10 if ALL else 4)
    assert reply.exit_code == 0


@alone
def test_terminated_add_is_taken_back(machine: Machine) -> None:
    """Wherever SIGTERM interrupts an ADD, all is as it was."""
    netns, conf = container(machine), full(machine)
    before = state(machine, netns)

    for fault in faults(rehearsal(machine, "tuning", "ADD", conf, netns), terminate=True):
        with faulty(machine, fault) as host, suppress(Terminated):
            machine.ok("tuning", "ADD", conf, netns, host=host)
        if not fault.happened:
            break
        assert state(machine, netns) == before, fault.what

    assert len(fault.done) > 10


@alone
def test_killed_add_is_cleaned_up(machine: Machine) -> None:
    """Wherever a SIGKILL hits an ADD, DEL gives back what it has changed."""
    netns, conf = container(machine), full(machine)
    before = state(machine, netns)

    for fault in faults(rehearsal(machine, "tuning", "ADD", conf, netns), kill=True):
        was_killed = killed(machine, conf, netns, fault)
        machine.ok("tuning", "DEL", conf, netns)
        assert state(machine, netns) == before, fault.at
        assert files(machine) == [], fault.at
        if not was_killed:
            break

    assert not was_killed
    assert fault.at > 10


def killed(machine: Machine, conf: Json, netns: str, fault: Fault) -> bool:
    """Run an ADD in a process that a fault kills; False when it never came to that."""

    def add() -> None:
        with faulty(machine, fault) as host:
            machine.ok("tuning", "ADD", conf, netns, host=host)

    process = multiprocessing.get_context("fork").Process(target=add)
    process.start()
    process.join(GENEROUS)
    assert process.exitcode in (0, KILLED)
    return process.exitcode == KILLED


@alone
def test_failed_delete_is_told_and_can_be_repeated(machine: Machine) -> None:
    """If any operation fails, DEL says so; then all goes."""
    netns, conf = container(machine), full(machine)
    before = state(machine, netns)
    failed = 0

    once = rehearsal(machine, "tuning", "DEL", conf, netns)
    for fault in faults(once, only=lambda what: what != "open namespace"):
        machine.ok("tuning", "ADD", conf, netns)
        with faulty(machine, fault) as host:
            reply = machine.invoke("tuning", "DEL", conf, netns, host=host)
        if not fault.happened:
            break
        assert reply.exit_code == 1, fault.what
        failed += 1
        machine.ok("tuning", "DEL", conf, netns)
        assert state(machine, netns) == before, fault.what
        assert files(machine) == [], fault.what

    assert failed > (8 if ALL else 2)
    assert state(machine, netns) == before
