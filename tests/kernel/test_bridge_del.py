"""bridge DEL: complete with all that the runtime may still know, and harms no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.inprocess import Fault, faulty
from tests.machine import CNI_BIN, ROOT, Json, Machine, files_below

ALL = {"ipMasq": True, "macspoofchk": True}  # what an attachment can leave on the host


def left(machine: Machine) -> Json:
    """Return everything on the host that belongs to an attachment, iptables' own chains not."""
    own = ({"family": "ip", "name": "nat"}, {"family": "ip", "table": "nat", "name": "POSTROUTING"})
    return {
        "ports": machine.ports(),
        "nft": [
            entry
            for entry in machine.nft()
            if not any(chain.items() <= next(iter(entry.values())).items() for chain in own)
        ],
        "leases": machine.leases(),
        "records": list(files_below(machine.state_dir)),
    }


def attachment(machine: Machine, container: str) -> Json:
    """Return all that an attachment consists of, on the host and in its container."""
    link, ports = machine.link(container, "eth0"), machine.ports()
    return {
        **left(machine),
        "link": link and (link["ifindex"], link["address"], link["flags"]),
        "addresses": machine.addresses(container, "eth0"),
        "masters": [(machine.link(machine.host, name) or {}).get("master") for name in ports],
    }


NOTHING: Json = {"ports": [], "nft": [], "leases": [], "records": []}


@pytest.mark.rotating(2)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="same"),
        pytest.param({"bridge": "br9"}, id="other-bridge"),
        pytest.param({"ipMasq": False}, id="ipMasq-off"),
        pytest.param({"ipMasqBackend": "iptables"}, id="other-backend"),
        pytest.param({"macspoofchk": False}, id="macspoofchk-off"),
        pytest.param({"ipam": None}, id="no-ipam"),
        pytest.param({"ipam": {"type": "absent"}}, id="other-ipam"),
        pytest.param({"ipam": {"type": "host-local", "dataDir": "/nowhere"}}, id="other-dataDir"),
        pytest.param({"mtu": "many", "vlan": -7, "bridge": "a b"}, id="invalid"),
        pytest.param({"isGateway": False, "cniVersion": "0.4.0"}, id="no-gateway"),
        pytest.param({"prevResult": {"ips": [{"address": "x"}]}}, id="bad-prevResult"),
        pytest.param({"prevResult": {"cniVersion": "0.2.0"}}, id="prevResult-of-other-version"),
        pytest.param({"prevResult": {"cniVersion": "9"}}, id="unknown-prevResult"),
    ],
)
@pytest.mark.parametrize("netns", ["there", "gone", "empty", "plain-file"])
def test_del_is_complete(machine: Machine, tmp_path: Path, change: Json, netns: str) -> None:
    """With any configuration, prevResult and namespace nothing is left on the host."""
    container = machine.container()
    machine.ok("bridge", "ADD", machine.network(**ALL), container)
    if netns in ("gone", "plain-file"):
        machine.forget(container)
        (tmp_path / "netns").touch()
    paths = {"there": container, "gone": container, "empty": "", "plain-file": tmp_path / "netns"}

    machine.ok("bridge", "DEL", machine.network(**ALL | change), str(paths[netns]))

    assert left(machine) == NOTHING


@pytest.mark.parametrize(
    "keys", [ALL, {"ipam": None}, {"ipMasq": True, "ipMasqBackend": "iptables"}]
)
def test_del_twice_and_for_an_unknown_container(machine: Machine, keys: Json) -> None:
    """DEL succeeds when there is nothing to do, and does not touch another attachment."""
    config, container = machine.network(**keys), machine.container()
    machine.ok("bridge", "ADD", config, container)
    before = attachment(machine, container)

    machine.ok("bridge", "DEL", config, machine.container(), containerid="unknown")
    machine.ok("bridge", "DEL", config, "", containerid="unknown")
    machine.ok("bridge", "DEL", config, "", ifname="eth9")

    assert attachment(machine, container) == before
    for _ in range(2):
        machine.ok("bridge", "DEL", config, container)
        assert left(machine) == NOTHING


@pytest.mark.both_edges
def test_del_without_namespace_and_prev_result_and_host_end(machine: Machine) -> None:
    """When the kernel has removed the pair with the namespace, the rest goes by the record."""
    container = machine.container()
    machine.ok("bridge", "ADD", machine.network(**ALL), container)
    machine.do(container, "ip link delete eth0")
    machine.forget(container)

    machine.ok("bridge", "DEL", machine.network(**ALL))

    assert left(machine) == NOTHING


def test_host_end_that_was_renamed(machine: Machine) -> None:
    """An interface of the host that got another name goes with its other end."""
    container = machine.container()
    machine.ok("bridge", "ADD", machine.network(), container)
    name = machine.ports()[0]
    machine.do(machine.host, f"ip link set {name} down", f"ip link set {name} name renamed")

    machine.ok("bridge", "DEL", machine.network(), container)

    assert left(machine) == NOTHING


def test_interface_of_the_recorded_name_that_is_another(machine: Machine) -> None:
    """An interface that only has the name of the recorded one stays."""
    container = machine.container()
    machine.ok("bridge", "ADD", machine.network(), container)
    name = machine.ports()[0]
    machine.do(container, "ip link delete eth0")
    machine.do(machine.host, f"ip link add {name} type veth peer name other")

    machine.ok("bridge", "DEL", machine.network(), container)

    assert machine.ports() == ["other", name]


# --- interfaces of others ------------------------------------------------------------------


def test_interface_that_leads_elsewhere(machine: Machine) -> None:
    """DEL of an unknown container leaves an eth0 alone whose other end is not on the host.

    Its interface numbers are those of an attachment of ours: each namespace counts its own.
    """
    living, unknown, elsewhere = (machine.container() for _ in range(3))
    machine.ok("bridge", "ADD", machine.network(), living)
    port, end = machine.link(machine.host, machine.ports()[0]), machine.link(living, "eth0")
    assert port is not None
    assert end is not None
    machine.do(
        unknown,
        f"ip link add eth0 index {end['ifindex']} type veth"
        f" peer name far index {port['ifindex']} netns {elsewhere}",
    )

    machine.ok("bridge", "DEL", machine.network(), unknown, containerid="unknown")

    assert machine.link(unknown, "eth0")
    assert machine.link(living, "eth0")


@pytest.mark.parametrize("master", ["none", "another-bridge"])
def test_interface_of_another_plugin(machine: Machine, master: str) -> None:
    """DEL of an unknown container leaves an eth0 alone that does not lead to the bridge."""
    unknown = machine.container()
    machine.do(
        machine.host,
        "ip link add br0 type bridge",
        "ip link add br1 type bridge",
        f"ip link add far type veth peer name eth0 netns {unknown}",
    )
    if master == "another-bridge":
        machine.do(machine.host, "ip link set far master br1")

    machine.ok("bridge", "DEL", machine.network(), unknown, containerid="unknown")

    assert machine.link(unknown, "eth0")


def test_path_that_leads_to_another_container_by_now(machine: Machine) -> None:
    """A late DEL whose namespace path is another's by now does not take that one's interface."""
    first, second = machine.container(), machine.container()
    machine.ok("bridge", "ADD", machine.network(), first, containerid="c1")
    machine.ok("bridge", "ADD", machine.network(), second, containerid="c2")

    machine.ok("bridge", "DEL", machine.network(), second, containerid="c1")
    machine.ok("bridge", "DEL", machine.network(), second, containerid="c1")

    assert machine.link(first, "eth0") is None
    assert machine.link(second, "eth0")
    assert machine.leases() == ["10.9.0.3"]


def test_interface_that_is_no_veth(machine: Machine) -> None:
    """DEL of an unknown container leaves something else called CNI_IFNAME alone."""
    unknown = machine.container()
    machine.do(unknown, "ip link add eth0 type bridge")

    machine.ok("bridge", "DEL", machine.network(), unknown)

    assert machine.link(unknown, "eth0")


def test_other_attachments_of_the_network_go_on(machine: Machine) -> None:
    """DEL of one container, and of one of its two interfaces, leaves the others connected."""
    first, second = machine.container(), machine.container()
    config = machine.network(**ALL)
    for containerid, netns, ifname in (
        ("c1", first, "eth0"),
        ("c1", first, "eth1"),
        ("c2", second, "eth0"),
    ):
        machine.ok("bridge", "ADD", config, netns, containerid=containerid, ifname=ifname)

    machine.ok("bridge", "DEL", config, first, containerid="c1", ifname="eth1")

    assert machine.leases() == ["10.9.0.2", "10.9.0.4"]
    assert sorted(machine.masqueraded()) == ["10.9.0.2", "10.9.0.4"]
    assert len(machine.ports()) == 2
    assert machine.ping(first, "10.9.0.4")


# --- when a step fails ---------------------------------------------------------------------


@pytest.mark.both_edges
def test_del_goes_on_past_a_failing_ipam(machine: Machine, tmp_path: Path) -> None:
    """Without the IPAM plugin all the rest is removed, and a later DEL frees the address."""
    container, config = machine.container(), machine.network(**ALL)
    machine.ok("bridge", "ADD", config, container)

    error = machine.refused("bridge", "DEL", config, container, path=str(tmp_path))

    assert "ipam: " in error["msg"]
    assert (machine.ports(), machine.nft(), machine.leases()) == ([], [], ["10.9.0.2"])
    machine.ok("bridge", "DEL", machine.network(ipam=None))
    assert left(machine) == NOTHING


@pytest.mark.without_engine(reason="the call that fails is answered in this process")
def test_all_failures_are_reported(machine: Machine) -> None:
    """When every change is refused DEL names each, keeps the record, and a repetition succeeds."""
    container, config = machine.container(), machine.network(**ALL)
    machine.ok("bridge", "ADD", config, container)
    refusal = Fault(
        at=1, lasting=True, only=lambda what: what.startswith(("delete", "nftables: delete"))
    )

    with faulty(machine, refusal) as host:
        error = machine.refused("bridge", "DEL", config, container, host=host)

    for step in ("veth: ", "masquerade: ", "mac-filter: "):
        assert step in error["msg"]
    assert len(machine.leases()) == 1  # the container still has the address
    machine.ok("bridge", "DEL", config, container)
    assert left(machine) == NOTHING


# --- what an interrupted ADD left ------------------------------------------------------------


def record_of_bridge(machine: Machine) -> Path:
    """Return the file of the only attachment record of bridge."""
    return Path(next(name for name in files_below(machine.state_dir) if "/bridge-" in name))


@pytest.mark.parametrize("keep_bytes", [0, 7, 60])
def test_damaged_record(machine: Machine, keep_bytes: int) -> None:
    """A record that says nothing is as good as none: DEL goes by namespace and configuration."""
    container, config = machine.container(), machine.network(**ALL)
    machine.ok("bridge", "ADD", config, container)
    path = record_of_bridge(machine)
    path.write_bytes(path.read_bytes()[:keep_bytes])

    machine.ok("bridge", "DEL", {**config, "macspoofchk": False}, container)

    assert machine.masqueraded() == {}
    assert left(machine) | {"nft": []} == NOTHING


@pytest.mark.parametrize("content", [b"", b'{"plugin":"bri'], ids=["empty", "torn"])
def test_add_after_one_that_died_in_its_first_write(machine: Machine, content: bytes) -> None:
    """An ADD that died before it had changed anything does not stop the next one."""
    container, config = machine.container(), machine.network(**ALL)
    machine.ok("bridge", "ADD", config, container)
    path = record_of_bridge(machine)
    machine.ok("bridge", "DEL", config, container)
    path.write_bytes(content)

    machine.ok("bridge", "ADD", config, container)

    machine.ok("bridge", "DEL", config, container)
    assert left(machine) == NOTHING


@pytest.mark.both_edges
def test_add_after_an_interrupted_add(machine: Machine) -> None:
    """A retry takes apart what the first attempt left, in whichever namespace that was."""
    first, second = machine.container(), machine.container()
    config = machine.network(**ALL)
    machine.ok("bridge", "ADD", config, first)
    machine.do(first, "ip link delete eth0")

    machine.ok("bridge", "ADD", config, second)

    assert machine.link(second, "eth0")
    assert len(machine.leases()) == len(machine.ports()) == len(machine.masqueraded()) == 1
    assert any("tears down the remains" in line for line in machine.log)


@pytest.mark.both_edges
def test_add_of_a_living_attachment_is_refused(machine: Machine) -> None:
    """A second ADD of an attachment that lives says since when and where, and harms it not."""
    first, second = machine.container(), machine.container()
    config = machine.network(**ALL)
    machine.ok("bridge", "ADD", config, first)
    before = attachment(machine, first)

    error = machine.refused("bridge", "ADD", config, second)

    assert error["code"] == 4
    assert first in error["msg"]
    assert attachment(machine, first) == before
    assert machine.link(second, "eth0") is None


# --- subprocesses --------------------------------------------------------------------------


def forbid_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every way to start a process fail."""

    def refuse(*args: object, **_kwargs: object) -> None:
        raise AssertionError(f"a process is started: {args}")

    for name in ("posix_spawn", "posix_spawnp", "fork", "forkpty", "system", "execve"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(subprocess, "_fork_exec", refuse)


@pytest.mark.without_engine(reason="watches this process")
@pytest.mark.parametrize("keys", [ALL, {"ipam": None}], ids=["l3", "l2"])
def test_nothing_is_started(machine: Machine, monkeypatch: pytest.MonkeyPatch, keys: Json) -> None:
    """ADD, CHECK, STATUS, GC and DEL, with and without a record, start no process."""
    container, config = machine.container(), machine.network(**keys)
    forbid_processes(monkeypatch)

    result = machine.ok("bridge", "ADD", config, container)
    machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)
    machine.ok("bridge", "STATUS", config)
    machine.ok("bridge", "GC", {**config, "cni.dev/valid-attachments": []})
    machine.ok("bridge", "DEL", config, container)
    machine.ok("bridge", "DEL", config, container)


@pytest.mark.without_engine(reason="watches this process")
def test_the_guard_against_processes_works(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the iptables backend the guard of the test above strikes."""
    container = machine.container()
    forbid_processes(monkeypatch)

    error = machine.refused(
        "bridge", "ADD", machine.network(ipMasq=True, ipMasqBackend="iptables"), container
    )

    assert "a process is started" in error["msg"]


GUARDED = """
import sys
STARTS = "subprocess.Popen os.exec os.forkpty os.posix_spawn os.system".split()
def refuse(event, args):
    if event in STARTS:
        raise AssertionError(f"a program is started: {event} {args}")
sys.addaudithook(refuse)
sys.path.insert(0, sys.argv[1])
sys.argv[:] = [sys.argv[2]]
from plugins.__main__ import run
raise SystemExit(run())
"""


def test_one_shot_program_runs_no_other(machine: Machine) -> None:
    """A process per command, as runtimes start it, runs none; frozen: e2e/test_deletion."""
    container, config = machine.container(), machine.network(**ALL)
    program = (sys.executable, "-c", GUARDED, str(ROOT), str(CNI_BIN / "bridge"))

    for command in ("ADD", "STATUS", "GC", "DEL", "DEL"):
        done = machine.try_command(
            machine.host,
            *program,
            stdin=json.dumps({**config, "cni.dev/valid-attachments": []}),
            env=machine.environ(command, container),
        )

        assert done.returncode == 0, done.stdout + done.stderr
