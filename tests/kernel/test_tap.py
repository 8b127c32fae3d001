"""tap on a real kernel: each key, the program on the other end, CHECK, DEL, GC, failures, kills.

"Unlike the reference" begins the account of each defect of the Go plugin that this one has not.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cni_common.node.liveness import GRACE_SECONDS
from commands import DONE, FOUND
from tests.faults.inprocess import INJECTED, KILLED, Fault, Terminated, faulty
from tests.kernel.sweeps import faults, rehearsal
from tests.kernel.test_commands import asked, kinds
from tests.kernel.test_macvlan import watching
from tests.kernel.test_rollback import TOLERATED_IN_ADD, TOLERATED_IN_DEL, calm, code_of, is_act
from tests.machine import REFERENCE_BIN, Json, Machine, error_of, files_below
from tests.waits import GENEROUS, wait_until

alone = pytest.mark.without_engine(reason="fails in this process")

MAC = "02:00:00:00:00:47"
IPV4, IPV6 = "10.47.0.0/24", "fd00:47::/64"
NOTHING: Json = {"leases": [], "records": [], "taps": []}
UID, GID = 4747, 4748
# What qemu does with the name of a tap: it opens the tap's other end, sends a frame, or fails.
OPEN = """
import fcntl, os, struct, sys
name, flags, sender = sys.argv[1].encode(), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
queues = []
for _ in range(2 if flags & 0x100 else 1):
    queues.append(os.open("/dev/net/tun", os.O_RDWR))
    fcntl.ioctl(queues[-1], 0x400454ca, struct.pack("16sH22x", name, flags))
header = bytes(10) if flags & 0x4000 else b""
os.write(queues[0], header + b"\\xff" * 6 + sender + b"\\x88\\xb5" + bytes(46))
print("sent")
"""


def network(machine: Machine, *subnets: str, **keys: Any) -> Json:
    """Return a tap configuration; without subnets an L2 one."""
    ranges = [[{"subnet": subnet}] for subnet in subnets]
    ipam = {"type": "host-local", "dataDir": machine.data_dir, "ranges": ranges}
    usual = {"type": "tap", "bridge": None, "isGateway": None, "ipam": ipam if subnets else None}
    return machine.network(**{**usual, **keys})


def tap_of(machine: Machine, container: str, name: str = "eth0") -> Json:
    """Return the container's interface."""
    link = machine.link(container, name)
    assert link is not None
    return link


def left(machine: Machine, *containers: str) -> Json:
    """Return everything that belongs to an attachment."""
    links = [one for netns in containers for one in machine.ip(netns, "link")]
    return {
        "leases": machine.leases(),
        "records": list(files_below(machine.state_dir)),
        "taps": [one["ifname"] for one in links if one["ifname"] not in ("lo", "br9")],
    }


def opened_by(
    machine: Machine, container: str, *, uid: int = UID, gid: int = UID, flags: int = 0x5002
) -> subprocess.CompletedProcess[str]:
    """Have a program of a user, without any capability, open the tap and send a frame."""
    words = ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--inh-caps=-all")
    program = (*words, sys.executable, "-I", "-S", "-c", OPEN, "eth0", str(flags), "020000000099")
    return machine.try_command(container, *program)


@pytest.fixture(autouse=True)
def tun_for_all() -> None:
    """Let every user open the driver, as distributions do: each tap has its own permissions."""
    os.chmod("/dev/net/tun", 0o666)


# --- ADD -----------------------------------------------------------------------------------


@pytest.mark.both_edges
def test_life(machine: Machine) -> None:
    """ADD with every key, CHECK, DEL twice; the tap lasts without a program that has it open."""
    container = machine.container()
    machine.do(container, "ip link add br9 type bridge", "ip link set br9 up")
    config = network(
        machine,
        IPV4,
        IPV6,
        multiQueue=True,
        mtu=1400,
        mac=MAC,
        owner=UID,
        group=GID,
        bridge="br9",
        dns={"domain": "a"},
    )
    result = machine.ok("tap", "ADD", config, container)

    link = tap_of(machine, container)
    data = link["linkinfo"]["info_data"]
    assert (link["linkinfo"]["info_kind"], data["type"], data["persist"]) == ("tun", "tap", True)
    assert (link["address"], link["mtu"], link["master"]) == (MAC, 1400, "br9")
    assert (data["user"], data["group"], data["multi_queue"]) == (UID, GID, True)
    assert (data["vnet_hdr"], data["pi"]) == (True, False)
    assert result["interfaces"] == [{"name": "eth0", "mac": MAC, "mtu": 1400, "sandbox": container}]
    assert machine.addresses(container, "eth0") == [ip["address"] for ip in result["ips"]]
    assert ("UP" in link["flags"], result["dns"]) == (True, {"domain": "a"})
    machine.ok("tap", "CHECK", {**config, "prevResult": result}, container)
    for _ in range(2):
        machine.ok("tap", "DEL", config, container)
    assert left(machine, container) == NOTHING


@pytest.mark.parametrize(
    ("owner", "group"), [(None, None), (UID, None), (None, GID), (UID, GID), (0, 0), (2**31, 2**31)]
)
def test_mac_and_mtu(machine: Machine, owner: int | None, group: int | None) -> None:
    """Unlike the reference, MAC and MTU are set for any owner of the tap; no process is started."""
    container = machine.container()
    config = network(machine, owner=owner, group=group, mtu=1300, mac=MAC)

    result = machine.ok("tap", "ADD", config, container)

    link = tap_of(machine, container)
    assert (link["address"], link["mtu"]) == (MAC, 1300)
    machine.ok("tap", "CHECK", {**config, "prevResult": result}, container)
    machine.ok("tap", "DEL", config, container)


def test_program_of_the_owner(machine: Machine) -> None:
    """The owner's program, or one of the group, opens the tap without any right; no other does."""
    container = machine.container()
    for keys, allowed, refused in (
        ({"owner": UID}, {"uid": UID}, {"uid": UID + 1}),
        ({"group": GID}, {"uid": UID, "gid": GID}, {"uid": UID, "gid": GID + 1}),
        ({"owner": UID, "group": GID}, {"uid": UID, "gid": GID}, {"uid": UID, "gid": UID}),
        ({}, {"uid": UID}, None),  # then every user may, as the kernel has it
    ):
        config = network(machine, mac=MAC, **keys)
        machine.ok("tap", "ADD", config, container)

        if refused:
            done = opened_by(machine, container, **refused)
            assert "Operation not permitted" in done.stderr, (keys, done)
        done = opened_by(machine, container, **allowed)
        assert done.stdout == "sent\n", (keys, done)
        (link,) = machine.ip(container, "-s", "link", "show", "dev", "eth0")
        assert link["stats64"]["rx"]["packets"] == 1
        machine.ok("tap", "DEL", config, container)


def test_queues(machine: Machine) -> None:
    """With multiQueue a program opens the tap several times; without, the kernel refuses that."""
    container = machine.container()
    machine.ok("tap", "ADD", network(machine, owner=UID, multiQueue=True), container)
    assert opened_by(machine, container, flags=0x5102).stdout == "sent\n"
    assert "Invalid argument" in opened_by(machine, container, flags=0x5002).stderr
    machine.ok("tap", "DEL", network(machine), container)
    machine.ok("tap", "ADD", network(machine, owner=UID), container)
    assert "Invalid argument" in opened_by(machine, container, flags=0x5102).stderr


def test_traffic_of_a_guest(machine: Machine) -> None:
    """Frames of the program reach the other port of the bridge in the container."""
    container, outside = machine.container(), machine.container()
    machine.do(
        container,
        f"ip link add port9 type veth peer name eth0 netns {outside}",
        "ip link add br9 type bridge mcast_snooping 0",
        "ip link set port9 master br9 up",
        "ip link set br9 up",
    )
    machine.do(outside, "ip link set eth0 up promisc on")
    machine.ok("tap", "ADD", network(machine, bridge="br9", owner=UID), container)
    (before,) = machine.ip(outside, "-s", "link", "show", "dev", "eth0")

    def received() -> bool:
        assert opened_by(machine, container).stdout == "sent\n"
        (link,) = machine.ip(outside, "-s", "link", "show", "dev", "eth0")
        return bool(link["stats64"]["rx"]["packets"] > before["stats64"]["rx"]["packets"])

    wait_until(received, "no frame of the program arrives")


def test_born_under_its_name(machine: Machine) -> None:
    """Unlike the reference, no temporary name is ever seen, which a failure could leave."""
    container = machine.container()
    with watching(machine, container) as inside:
        machine.ok("tap", "ADD", network(machine), container)

    assert inside == {"lo", "eth0"}


def test_sources_of_the_mac(machine: Machine) -> None:
    """The capability beats args.cni, that beats CNI_ARGS, and that the configuration."""
    by_runtime = {"runtimeConfig": {"mac": "02:00:00:00:00:13"}}
    by_args = {"args": {"cni": {"mac": "02:00:00:00:00:12"}}}
    container, seen = machine.container(), []
    for keys, args in (
        ({}, ""),
        ({}, "MAC=02:00:00:00:00:11;IP=10.47.0.40"),
        (by_args, "MAC=02:00:00:00:00:11"),
        ({**by_runtime, **by_args}, "MAC=02:00:00:00:00:11"),
    ):
        config = network(machine, mac="02-00-00-00-00-10", **keys)
        result = machine.ok("tap", "ADD", config, container, args=args)
        seen.append(result["interfaces"][0]["mac"])
        machine.ok("tap", "DEL", config, container)

    assert [mac[-2:] for mac in seen] == ["10", "11", "12", "13"]


REFUSED: tuple[tuple[Json, int, str], ...] = (
    ({"bridge": "br9"}, 50, "no bridge 'br9'"),
    ({"bridge": "lo"}, 50, "no bridge 'lo'"),
    ({"bridge": "a/b"}, 7, '"bridge"'),
    ({"mtu": 67}, 7, "mtu"),
    ({"mtu": 65522}, 7, "65521"),
    ({"mtu": "1400"}, 7, "mtu"),
    ({"owner": -1}, 7, "owner"),
    ({"owner": 2**32 - 1}, 7, "owner"),
    ({"group": "kvm"}, 7, "group"),
    ({"multiQueue": 1}, 7, "multiQueue"),
    ({"mac": "01:00:00:00:00:01"}, 7, "MAC"),
    ({"selinuxContext": "system_u:system_r:svirt_t:s0"}, 50, "SELinux is off"),
    ({"selinuxContext": 5}, 7, "selinuxContext"),
    ({"cniVersion": "0.2.0"}, 1, "no valid IP addresses"),  # without any, it cannot be told
    ({"ipam": {"type": "absent"}}, 50, "absent"),
    # Unlike the reference, an ADD whose IPAM plugin fails leaves no interface behind.
    ({"ipam": {"type": "static"}}, 999, "missing IP config"),
)


def test_refused(machine: Machine) -> None:
    """A configuration that cannot work is refused.

    Unlike with the reference, nothing is left where the bridge is missing.
    """
    container = machine.container()

    for keys, code, says in REFUSED:
        error = machine.refused("tap", "ADD", network(machine, **keys), container)

        assert (error["code"], says in error["msg"]) == (code, True), error
        assert left(machine, container) == NOTHING
        machine.ok("tap", "DEL", network(machine, **keys), container)


def test_largest(machine: Machine) -> None:
    """The largest MTU is the kernel's."""
    container = machine.container()
    machine.ok("tap", "ADD", network(machine, mtu=65521), container)
    assert tap_of(machine, container)["mtu"] == 65521


def test_selinux_of_the_reference(machine: Machine) -> None:
    """Where SELinux is off, the reference refuses a context, too."""
    config = network(machine, selinuxContext="system_u:system_r:svirt_t:s0")
    done = machine.execute(REFERENCE_BIN / "tap", "ADD", config, machine.container())

    assert (done.returncode, "label" in done.stdout) == (1, True), done.stdout


@pytest.mark.parametrize("netns", ["same", "other"])
def test_refused_twice(machine: Machine, netns: str) -> None:
    """An attachment that lives is neither replaced nor harmed by another ADD for it."""
    container = machine.container()
    machine.ok("tap", "ADD", network(machine, IPV4), container)
    before = tap_of(machine, container)["ifindex"]

    where = container if netns == "same" else machine.container()
    assert machine.refused("tap", "ADD", network(machine, IPV4), where)["code"] == 4
    assert tap_of(machine, container)["ifindex"] == before


# --- CHECK, STATUS -------------------------------------------------------------------------


def test_check_tells(machine: Machine) -> None:
    """Each difference from the result of ADD is named."""
    container = machine.container()
    machine.do(container, "ip link add br9 type bridge", "ip link set br9 up")
    config = network(machine, IPV4, bridge="br9", owner=UID, mtu=1400)
    result = machine.ok("tap", "ADD", config, container)
    checked = {**config, "prevResult": result}
    for keys, says in (
        ({"owner": UID + 1}, f"owner of 'eth0' is {UID}"),
        ({"group": GID}, "group of 'eth0' is None"),
        ({"multiQueue": True}, "multiQueue of 'eth0' is False"),
        ({"bridge": "br8"}, "no port of bridge 'br8'"),
    ):
        error = machine.refused("tap", "CHECK", {**checked, **keys}, container)
        assert says in error["msg"], error
    for line, says in (
        ("ip link set eth0 nomaster", "no port of bridge"),
        ("ip link set eth0 mtu 1300", "MTU"),
        ("ip link set eth0 down", "is down"),
        ("ip addr flush dev eth0", "10.47.0.2/24"),
        ("ip link set eth0 name other", "missing"),
        ("ip link add eth0 type ifb", "no tun but 'ifb'"),
    ):
        machine.command(container, *line.split())
        error = machine.refused("tap", "CHECK", checked, container)
        assert says in error["msg"], error


@pytest.mark.both_edges
def test_status(machine: Machine) -> None:
    """STATUS tells of the configuration, the driver and the IPAM plugin."""
    machine.ok("tap", "STATUS", network(machine))
    machine.ok("tap", "STATUS", network(machine, IPV4))
    assert machine.refused("tap", "STATUS", network(machine, owner="a"))["code"] == 7
    assert machine.refused("tap", "STATUS", network(machine, selinuxContext="a"))["code"] == 50
    assert machine.refused("tap", "STATUS", network(machine, ipam={"type": "no"}))["code"] == 50


# --- DEL, GC, the commands ------------------------------------------------------------------


@pytest.mark.parametrize("namespace", ["there", "unknown", "gone"])
def test_delete(machine: Machine, namespace: str) -> None:
    """DEL is complete with a broken configuration, a changed interface, and one that is in use."""
    for change in ({}, {"ipam": None}, {"bridge": "br8", "owner": "x"}):
        container, config = machine.container(), network(machine, IPV4, owner=UID)
        machine.ok("tap", "ADD", config, container)
        machine.do(container, "ip link set eth0 down", f"ip link set eth0 name other address {MAC}")
        containers = [container]
        if namespace == "gone":
            machine.forget(container)
            containers = []
        for _ in range(2):
            netns = "" if namespace == "unknown" else container
            machine.ok("tap", "DEL", {**config, **change}, netns)
        assert left(machine, *containers) == NOTHING


def test_delete_with_nothing_known(machine: Machine) -> None:
    """DEL of what was never added succeeds, and spares another kind and another container."""
    container, config = machine.container(), network(machine, IPV4)
    for netns in (container, "/no/such/netns", ""):
        machine.ok("tap", "DEL", config, netns, args="=")
    assert left(machine, container) == NOTHING
    machine.do(container, "ip link add eth0 type ifb")
    machine.ok("tap", "DEL", config, container)
    assert left(machine, container)["taps"] == ["eth0"]
    other = machine.container()
    machine.ok("tap", "ADD", config, other)
    machine.ok("tap", "DEL", config, other, containerid="c2")
    assert left(machine, other)["taps"] == ["eth0"]


@pytest.mark.parametrize("owned", [True, False])
def test_the_reference(machine: Machine, owned: bool) -> None:
    """The result is the Go plugin's, but for the MTU; each deletes what the other has made."""
    keys = {"owner": UID, "group": GID} if owned else {"mac": MAC, "mtu": 1400}
    config, container = network(machine, IPV4, **keys), machine.container()
    path = str(REFERENCE_BIN)
    theirs = machine.reference("tap", "ADD", config, container, path=path)
    machine.ok("tap", "DEL", {**config, "prevResult": theirs}, container)
    assert left(machine, container) == NOTHING
    machine.ok("host-local", "ADD", config, container, containerid="before")  # takes the address
    machine.ok("host-local", "DEL", config, container, containerid="before")

    ours = machine.ok("tap", "ADD", config, container)

    machine.reference("tap", "DEL", config, container, path=path)
    assert left(machine, container)["taps"] == []
    for one in (theirs, ours):
        one["interfaces"][0].pop("mac")
        one["ips"][0].pop("address")
    assert ours["interfaces"][0].pop("mtu") == (1500 if owned else 1400)
    assert ours == theirs


def test_gc_and_commands(machine: Machine) -> None:
    """GC releases what a dead container has, and spares a living one; `explain` shows the tap."""
    config = network(machine, "10.119.47.0/24")
    dead, living = machine.container(), machine.container()
    machine.ok("tap", "ADD", config, dead, containerid="dead")
    machine.ok("tap", "ADD", config, living, containerid="living")
    (one,) = asked(machine, "explain", "living", status=DONE)["attachments"]
    assert kinds(one["objects"]) == ["address", "device", "mac", "mtu"]
    machine.command(living, "ip", "link", "del", "eth0")
    asked(machine, "explain", "living", status=FOUND)
    machine.forget(dead)
    leases = [Path(machine.data_dir, machine.name, address) for address in machine.leases()]
    for file in (*map(Path, files_below(machine.state_dir)), *leases):
        os.utime(file, (file.stat().st_mtime - GRACE_SECONDS - 60,) * 2)

    machine.ok("tap", "GC", {**config, "cni.dev/valid-attachments": []})

    assert machine.leases() == ["10.119.47.3"]


# --- failures ------------------------------------------------------------------------------


def is_not_disk(what: str) -> bool:
    """Tell whether an operation is none of host-local's."""
    return not what.startswith("disk")


def arrange(machine: Machine) -> tuple[str, Json]:
    """Return a container with a bridge, and a configuration that uses all."""
    container = machine.container()
    calm(machine, container)
    machine.do(container, "ip link add br9 type bridge", "ip link set br9 up")
    keys: Json = {"bridge": "br9", "owner": UID, "group": GID, "mtu": 1400, "mac": MAC}
    return container, network(machine, IPV4, IPV6, **keys)


@alone
@pytest.mark.timeout(300)
def test_any_failure_of_an_add_is_taken_back(machine: Machine) -> None:
    """If any operation fails, ADD says so, nothing is left, and the next ADD succeeds."""
    (container, config), failed = arrange(machine), 0

    for fault in faults(rehearsal(machine, "tap", "ADD", config, container), only=is_not_disk):
        with faulty(machine, fault) as host:
            reply = machine.invoke("tap", "ADD", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
            assert left(machine, container) == NOTHING, fault.what
        else:
            assert re.fullmatch(TOLERATED_IN_ADD, fault.what)
            machine.ok("tap", "DEL", config, container)

    assert failed > 6
    machine.ok("tap", "DEL", config, container)
    assert left(machine, container) == NOTHING


@alone
@pytest.mark.timeout(300)
def test_terminated_or_killed(machine: Machine) -> None:
    """A tap that a killed ADD has made goes with it; SIGTERM takes all back, too."""
    container, config = arrange(machine)
    once = rehearsal(machine, "tap", "ADD", config, container)
    keys: Json = {"terminate": True, "only": lambda what: is_act(what) and is_not_disk(what)}
    for fault in faults(once, **keys):
        with faulty(machine, fault) as host, suppress(Terminated):
            machine.ok("tap", "ADD", config, container, host=host)
        if not fault.happened:
            break
        assert left(machine, container) == NOTHING, fault.what
    machine.ok("tap", "DEL", config, container)

    for fault in faults(once, kill=True, only=is_act):
        was_killed = killed(machine, config, container, fault)
        if was_killed:
            assert left(machine, container)["taps"] == [], fault.at
        machine.ok("tap", "DEL", config, container if fault.at % 2 else "")
        assert left(machine, container) == NOTHING, fault.at
        if not was_killed:
            break
    assert not was_killed


def killed(machine: Machine, config: Json, container: str, fault: Fault) -> bool:
    """Run an ADD in a process that a fault kills; False when it never came to that."""

    def add() -> None:
        with faulty(machine, fault) as host:
            machine.ok("tap", "ADD", config, container, host=host)

    process = multiprocessing.get_context("fork").Process(target=add)
    process.start()
    process.join(GENEROUS)
    assert process.exitcode in (0, KILLED)
    return process.exitcode == KILLED


@alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "unrecorded"])
def test_failed_delete_is_told_and_can_be_repeated(machine: Machine, recorded: bool) -> None:
    """If any operation fails, DEL says so; then all goes."""
    (container, config), failed = arrange(machine), 0

    def unrecord() -> None:
        for path in files_below(machine.state_dir) if not recorded else ():
            if "/tap-" in path:
                Path(path).unlink()

    once = rehearsal(machine, "tap", "DEL", config, container, unrecord)
    for fault in faults(once, only=lambda what: what != "open namespace" and is_not_disk(what)):
        result = machine.ok("tap", "ADD", config, container)
        unrecord()
        fault.code = code_of(fault.at)
        with faulty(machine, fault) as host:
            reply = machine.invoke("tap", "DEL", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code or not re.fullmatch(TOLERATED_IN_DEL, fault.what):
            failed += 1
            assert error_of(reply.stdout), fault.what
            machine.ok("tap", "DEL", {**config, "prevResult": result}, container)
        assert left(machine, container) == NOTHING, fault.what

    assert failed > 1
