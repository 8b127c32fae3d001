"""dummy on a kernel that has it: ADD, CHECK, DEL, GC, what a failure leaves, the Go plugin beside.

"Unlike the reference" begins the account of each defect of the Go plugin that this one has not.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from cni_common.node.liveness import GRACE_SECONDS
from tests.faults.inprocess import INJECTED, faulty
from tests.kernel.sweeps import faults, rehearsal
from tests.kernel.test_rollback import TOLERATED_IN_ADD
from tests.machine import REFERENCE_BIN, Json, Machine, error_of, files_below

full_kernel = pytest.mark.full_kernel
IPV4, IPV6 = "10.54.0.0/24", "fd00:54::/64"
NOTHING: Json = {"leases": [], "records": [], "dummies": []}


def network(machine: Machine, *subnets: str, **keys: Any) -> Json:
    """Return a dummy configuration, with IPv4 unless told otherwise."""
    ranges = [[{"subnet": subnet}] for subnet in subnets or (IPV4,)]
    ipam = {"type": "host-local", "dataDir": machine.data_dir, "ranges": ranges}
    usual = {"type": "dummy", "bridge": None, "isGateway": None}
    return machine.network(**{**usual, "ipam": ipam, **keys})


def left(machine: Machine, *containers: str) -> Json:
    """Return everything that belongs to an attachment."""
    names = [one["ifname"] for netns in containers for one in machine.ip(netns, "link")]
    return {
        "leases": machine.leases(),
        "records": list(files_below(machine.state_dir)),
        "dummies": [name for name in names if name != "lo"],
    }


def test_without_ipam(machine: Machine) -> None:
    """A network without an IPAM plugin is refused before anything is made."""
    container = machine.container()

    for command in ("ADD", "CHECK", "STATUS"):
        error = machine.refused("dummy", command, network(machine, ipam={}), container)
        assert (error["code"], "requires an IPAM" in error["msg"]) == (7, True)
    assert left(machine, container) == NOTHING


def test_without_the_module(machine: Machine) -> None:
    """Where the kernel has no dummies, ADD names the module, and nothing is left."""
    container = machine.container()
    reply = machine.invoke("dummy", "ADD", network(machine), container)
    if reply.exit_code == 0:
        pytest.skip("this kernel has dummies: tests/vm runs the other tests of this file")

    error = error_of(reply.stdout)
    assert (error["code"], "module 'dummy'" in error["msg"]) == (50, True)
    assert left(machine, container) == NOTHING
    machine.ok("dummy", "DEL", network(machine), container)


@full_kernel
@pytest.mark.parametrize("version", ["0.4.0", "1.1.0"])
def test_life(machine: Machine, version: str) -> None:
    """ADD, CHECK and DEL, IPv4 and IPv6; the addresses answer when ADD returns."""
    config = network(machine, IPV4, IPV6, cniVersion=version, dns={"domain": "a"})
    container = machine.container()
    result = machine.ok("dummy", "ADD", config, container)

    link = machine.link(container, "eth0")
    assert link is not None
    assert link["linkinfo"]["info_kind"] == "dummy"
    assert result["interfaces"][0]["mac"] == link["address"]
    assert [ip["interface"] for ip in result["ips"]] == [0, 0]
    assert result["dns"] == {"domain": "a"}
    machine.do(container, "ip link set lo up")
    assert all(machine.ping(container, one) for one in ("10.54.0.2", "fd00:54::2"))
    machine.ok("dummy", "CHECK", {**config, "prevResult": result}, container)
    assert machine.refused("dummy", "ADD", config, machine.container())["code"] == 4
    machine.do(container, "ip link set eth0 down")
    error = machine.refused("dummy", "CHECK", {**config, "prevResult": result}, container)
    assert "is down" in error["msg"]
    machine.ok("dummy", "DEL", {**config, "ipam": None}, container)
    machine.ok("dummy", "DEL", config, container)
    assert left(machine, container) == NOTHING


@full_kernel
@pytest.mark.parametrize("namespace", ["gone", "unknown"])
def test_delete(machine: Machine, namespace: str) -> None:
    """DEL is complete without the namespace or its path, also after the container changed it."""
    config, container = network(machine), machine.container()
    machine.ok("dummy", "ADD", config, container)
    machine.do(
        container, "ip link set eth0 down", "ip link set eth0 name other address 02:00:00:00:00:09"
    )
    containers = [container]
    if namespace == "gone":
        machine.forget(container)
        containers = []

    for _ in range(2):
        machine.ok("dummy", "DEL", config, container if namespace == "gone" else "")

    assert left(machine, *containers) == NOTHING


@full_kernel
def test_the_reference(machine: Machine) -> None:
    """The result is the Go plugin's, but for the MTU; each deletes what the other has made."""
    config, container, path = network(machine), machine.container(), f"{REFERENCE_BIN}"
    theirs = machine.reference("dummy", "ADD", config, container, path=path)
    machine.ok("dummy", "DEL", {**config, "prevResult": theirs}, container)
    assert left(machine, container) == NOTHING

    machine.ok("host-local", "ADD", config, container, containerid="before")  # takes the address
    machine.ok("host-local", "DEL", config, container, containerid="before")
    ours = machine.ok("dummy", "ADD", config, container)
    machine.reference("dummy", "DEL", config, container, path=path)

    assert machine.leases() == []
    for one in (theirs, ours):
        one["interfaces"][0].pop("mac")
        one["ips"][0].pop("address")
    assert ours["interfaces"][0].pop("mtu") == 1500
    assert ours == theirs


@full_kernel
def test_gc(machine: Machine) -> None:
    """GC removes the lease of a dead container, and spares a living one."""
    config = network(machine, "10.119.54.0/24")
    dead, living = machine.container(), machine.container()
    machine.ok("dummy", "ADD", config, dead, containerid="dead")
    machine.ok("dummy", "ADD", config, living, containerid="living")
    machine.forget(dead)
    leases = [Path(machine.data_dir, machine.name, address) for address in machine.leases()]
    for file in (*map(Path, files_below(machine.state_dir)), *leases):
        os.utime(file, (file.stat().st_mtime - GRACE_SECONDS - 60,) * 2)

    machine.ok("dummy", "GC", {**config, "cni.dev/valid-attachments": []})

    assert machine.leases() == ["10.119.54.3"]
    assert machine.link(living, "eth0") is not None


@full_kernel
@pytest.mark.without_engine(reason="fails in this process")
def test_any_failure_of_an_add_is_taken_back(machine: Machine) -> None:
    """Unlike the reference, nothing is left, whichever operation fails."""
    config, container, failed = network(machine), machine.container(), 0

    once = rehearsal(machine, "dummy", "ADD", config, container)
    for fault in faults(once, only=lambda what: not what.startswith("disk")):
        with faulty(machine, fault) as host:
            reply = machine.invoke("dummy", "ADD", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
            assert left(machine, container) == NOTHING, fault.what
        else:
            assert re.fullmatch(TOLERATED_IN_ADD, fault.what)
            machine.ok("dummy", "DEL", config, container)

    assert failed > 4
    machine.ok("dummy", "DEL", config, container)
    assert left(machine, container) == NOTHING
