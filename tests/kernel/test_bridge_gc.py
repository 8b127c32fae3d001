"""bridge GC: removes objects of no container, and spares all that may be a container's."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pytest

from cni_common.node.liveness import GRACE_SECONDS
from cni_common.node.record import Records
from cni_common.spec.request import Attachment
from tests.faults.inprocess import Fault, faulty
from tests.machine import Json, Machine, files_below
from tests.mounts import mounted

KEY, OLD_KEY = "cni.dev/valid-attachments", "cni.dev/attachments"
OLD = GRACE_SECONDS + 60
NOTHING: Json = {"ports": [], "nft": [], "leases": [], "records": []}


@pytest.fixture
def config(machine: Machine) -> Json:
    """A network whose attachments leave something of every kind on the host.

    No other test has its subnets: GC spares addresses that it sees in use.
    """
    a, b = uuid4().bytes[:2]
    ranges = [[{"subnet": f"10.{a}.{b}.0/24"}], [{"subnet": f"fd00:{a:x}:{b:x}::/64"}]]
    ipam = {"type": "host-local", "dataDir": machine.data_dir, "ranges": ranges}
    return machine.network(ipMasq=True, macspoofchk=True, ipam=ipam)


def left(machine: Machine) -> Json:
    """Return everything on the host that belongs to an attachment."""
    return {
        "ports": machine.ports(),
        "nft": machine.nft(),
        "leases": machine.leases(),
        "records": list(files_below(machine.state_dir)),
    }


def age(machine: Machine) -> None:
    """Make all records and leases older than GC's grace time."""
    leases = [Path(machine.data_dir, machine.name, address) for address in machine.leases()]
    for path in (*map(Path, files_below(machine.state_dir)), *leases):
        os.utime(path, (path.stat().st_mtime - OLD,) * 2)


def entry(containerid: str) -> Json:
    """Return an attachment as the runtime lists it."""
    return {"containerID": containerid, "ifname": "eth0"}


def abandoned(machine: Machine, config: Json, tmp_path: Path, containerid: str = "c1") -> str:
    """Attach a container whose namespace then has no path any more; only a descriptor holds it."""
    container = machine.container()
    with mounted(tmp_path / containerid, container) as path:
        machine.ok("bridge", "ADD", config, path, containerid=containerid)
    return container


def dead(machine: Machine, config: Json, tmp_path: Path, containerid: str = "c1") -> None:
    """Attach a container and let its namespace go.

    Its interface is on the host by then, so that the kernel does not take away the pair.
    """
    container = abandoned(machine, config, tmp_path, containerid)
    machine.do(container, f"ip link set eth0 netns {machine.host} name of-{containerid}")
    machine.forget(container)


@pytest.mark.both_edges
@pytest.mark.parametrize("key", [KEY, OLD_KEY])
def test_gc_removes_what_is_not_valid(
    machine: Machine, config: Json, tmp_path: Path, key: str
) -> None:
    """Lease, veth, nftables elements and record of a dead, unnamed one go; named ones stay."""
    abandoned(machine, config, tmp_path, "valid")
    before = left(machine)
    dead(machine, config, tmp_path, "stale")
    age(machine)

    machine.ok("bridge", "GC", {**config, key: [entry("valid")]})

    assert left(machine) == before
    assert any("GC removes stale eth0" in line for line in machine.log)


def test_gc_with_an_empty_list(machine: Machine, config: Json, tmp_path: Path) -> None:
    """An empty list is a list: nothing is valid."""
    dead(machine, config, tmp_path)
    age(machine)

    machine.ok("bridge", "GC", {**config, KEY: []})

    assert left(machine) == NOTHING


def test_gc_without_a_list(machine: Machine, config: Json, tmp_path: Path) -> None:
    """Without a list only attachments go whose namespace is known to be gone."""
    container = machine.container()
    machine.ok("bridge", "ADD", config, container, containerid="living")
    before = left(machine)
    dead(machine, config, tmp_path, "dead")
    age(machine)

    machine.ok("bridge", "GC", config)

    assert left(machine) == before


@pytest.mark.both_edges
@pytest.mark.parametrize("how", ["path", "process", "run-netns"])
def test_gc_spares_a_living_namespace(
    machine: Machine, config: Json, tmp_path: Path, how: str
) -> None:
    """An unnamed attachment keeps all while its namespace is at its path or can be found."""
    container = machine.container()
    if how == "path":
        machine.ok("bridge", "ADD", config, container)
    else:
        container = abandoned(machine, config, tmp_path)
    age(machine)
    before = left(machine)

    if how == "process":
        with machine.process_in(container):
            machine.ok("bridge", "GC", {**config, KEY: []})
    elif how == "run-netns":
        with mounted(Path("/run/netns", machine.name), container):
            machine.ok("bridge", "GC", {**config, KEY: []})
    else:
        machine.ok("bridge", "GC", {**config, KEY: []})

    assert left(machine) == before
    assert any(
        "its namespace lives: the host's end of its veth pair" in line for line in machine.log
    )


def test_gc_takes_another_namespace_at_the_path_for_none(
    machine: Machine, config: Json, tmp_path: Path
) -> None:
    """The path of a dead container that leads to another namespace by now keeps nothing alive."""
    dead(machine, config, tmp_path)
    age(machine)

    with mounted(tmp_path / "c1", machine.container()):
        machine.ok("bridge", "GC", {**config, KEY: []})

    assert left(machine) == NOTHING


@pytest.mark.parametrize("seconds", [GRACE_SECONDS - 20, -3600], ids=["young", "future"])
def test_gc_spares_the_young(machine: Machine, config: Json, tmp_path: Path, seconds: int) -> None:
    """An attachment within its grace time, or from a clock that was set back, is left alone."""
    abandoned(machine, config, tmp_path)
    for path in map(Path, files_below(machine.state_dir)):
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)
    before = left(machine)

    machine.ok("bridge", "GC", {**config, KEY: []})

    assert left(machine) == before
    assert any("younger than" in line for line in machine.log)


def test_gc_spares_what_is_being_worked_on(machine: Machine, config: Json, tmp_path: Path) -> None:
    """An attachment whose record another call holds keeps all, its elements too."""
    abandoned(machine, config, tmp_path)
    age(machine)
    before = left(machine)
    records = Records(machine.state_dir)
    held = [
        records.find(plugin, machine.name, Attachment("c1", "eth0"))
        for plugin in ("bridge", "host-local")
    ]

    machine.ok("bridge", "GC", {**config, KEY: []})

    records.close()
    assert all(held)
    assert left(machine) == before


def test_gc_of_another_network(machine: Machine, config: Json, tmp_path: Path) -> None:
    """GC of one network leaves those of all others alone, however their names begin."""
    abandoned(machine, config, tmp_path)
    age(machine)
    before = left(machine)

    for name in (f"{machine.name}-2", machine.name[:-1]):
        machine.ok("bridge", "GC", {**config, "name": name, KEY: []})

    assert left(machine) == before


def test_gc_of_one_interface(machine: Machine, config: Json, tmp_path: Path) -> None:
    """Attachments are told by container and interface."""
    container = machine.container()
    with mounted(tmp_path / "netns", container) as path:
        machine.ok("bridge", "ADD", config, path, ifname="eth0")
        before = left(machine)
        machine.ok("bridge", "ADD", config, path, ifname="eth1")
    for ifname in ("eth0", "eth1"):
        machine.do(container, f"ip link set {ifname} netns {machine.host} name of-{ifname}")
    machine.forget(container)
    before["ports"].append("of-eth0")
    age(machine)

    machine.ok("bridge", "GC", {**config, KEY: [entry("c1")]})

    assert left(machine) == before


def test_gc_after_changed_configuration(machine: Machine, config: Json, tmp_path: Path) -> None:
    """GC goes by the records: other bridge, no masquerading, another dataDir make no difference."""
    dead(machine, config, tmp_path)
    age(machine)
    changed = {"bridge": "br9", "ipMasq": False, "macspoofchk": False, "mtu": "x"}
    ipam = {**config["ipam"], "dataDir": str(tmp_path / "elsewhere")}

    machine.ok("bridge", "GC", {**config, **changed, "ipam": ipam, KEY: []})

    assert left(machine) == NOTHING


def test_gc_with_the_iptables_backend(machine: Machine, config: Json, tmp_path: Path) -> None:
    """Rules that were made with iptables go likewise."""
    dead(machine, {**config, "ipMasqBackend": "iptables"}, tmp_path)
    age(machine)

    machine.ok("bridge", "GC", {**config, KEY: []})

    saved = machine.command(machine.host, "iptables-save", "-t", "nat")
    saved += machine.command(machine.host, "ip6tables-save", "-t", "nat")
    assert "CNI-" not in saved
    assert machine.leases() == []


def test_gc_of_what_has_lost_its_record(machine: Machine, config: Json, tmp_path: Path) -> None:
    """Leases and elements without a record go when nobody is seen to use their addresses."""
    container = abandoned(machine, config, tmp_path)
    machine.do(container, "ip link delete eth0")
    age(machine)
    for name in files_below(machine.state_dir):
        os.unlink(name)

    machine.ok("bridge", "GC", {**config, KEY: []})

    assert left(machine) == NOTHING


def test_gc_spares_addresses_in_use_without_a_record(
    machine: Machine, config: Json, tmp_path: Path
) -> None:
    """Without a record an address that some namespace has keeps its lease and its element."""
    container = abandoned(machine, config, tmp_path)
    age(machine)
    for name in files_below(machine.state_dir):
        os.unlink(name)
    before = left(machine)

    with machine.process_in(container):
        machine.ok("bridge", "GC", {**config, KEY: []})

    assert left(machine) == before


@pytest.mark.without_engine(reason="the call that fails is answered in this process")
def test_gc_goes_on_past_a_failure(machine: Machine, config: Json, tmp_path: Path) -> None:
    """When one attachment resists the others are removed, it is named, and a repetition does it."""
    for containerid in ("c1", "c2", "c3"):
        dead(machine, config, tmp_path, containerid)
    age(machine)
    refusal = Fault(at=1, only=lambda what: what.startswith("delete interface"))

    with faulty(machine, refusal) as host:
        error = machine.refused("bridge", "GC", {**config, KEY: []}, host=host)

    assert "veth: " in error["msg"]
    assert len(machine.ports()) == 2  # both ends of one pair
    age(machine)
    machine.ok("bridge", "GC", {**config, KEY: []})
    assert left(machine) == NOTHING


def test_gc_of_an_l2_network(machine: Machine, tmp_path: Path) -> None:
    """A network without IPAM is cleaned of its interfaces and filters."""
    config = machine.network(ipam=None, macspoofchk=True)
    dead(machine, config, tmp_path)
    age(machine)

    machine.ok("bridge", "GC", {**config, KEY: []})

    assert left(machine) == NOTHING


@pytest.mark.both_edges
def test_gc_is_forwarded(machine: Machine, config: Json, tmp_path: Path) -> None:
    """The IPAM plugin gets the same GC, here an executable that writes down what it was asked."""
    script = tmp_path / "writes"
    script.write_text(
        f'#!/bin/sh\ncat >{tmp_path}/stdin\necho "$CNI_COMMAND" >{tmp_path}/command\n'
    )
    script.chmod(0o755)
    config["ipam"] = {"type": "writes"}

    machine.ok("bridge", "GC", {**config, KEY: [entry("c9")]}, path=str(tmp_path))

    assert (tmp_path / "command").read_text() == "GC\n"
    assert '"containerID": "c9"' in (tmp_path / "stdin").read_text()


@pytest.mark.both_edges
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_gc_needs_1_1(machine: Machine, config: Json, version: str) -> None:
    """GC did not exist before 1.1.0."""
    error = machine.refused("bridge", "GC", {**config, "cniVersion": version, KEY: []})

    assert error["code"] == 1
