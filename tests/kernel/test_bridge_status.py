"""bridge STATUS: honest about whether an ADD could work now, and never made to wait."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cni_common.kernel import iptables
from cni_common.node.record import Records
from cni_common.spec.request import Attachment
from tests.faults.inprocess import Fault, faulty
from tests.machine import Json, Machine, files_below
from tests.waits import longer_if_busy


def small(machine: Machine) -> Json:
    """Return a network with two addresses."""
    ipam = {"type": "host-local", "dataDir": machine.data_dir, "subnet": "10.9.0.0/30"}
    ipam |= {"gateway": "10.9.0.3"}
    return machine.network(ipam=ipam)


@pytest.mark.parametrize(
    "keys",
    [{}, {"ipam": None}, {"ipMasq": True}, {"ipMasq": True, "ipMasqBackend": "iptables"}],
    ids=["l3", "l2", "nftables", "iptables"],
)
def test_ready(machine: Machine, keys: Json) -> None:
    """On a host where ADD works STATUS says nothing, and leaves no trace."""
    before = machine.snapshot()

    reply = machine.invoke("bridge", "STATUS", machine.network(**keys), args="A=b=c")

    assert (reply.exit_code, reply.stdout) == (0, b"")
    assert machine.snapshot() == before


@pytest.mark.both_edges
def test_ipam_plugin_is_missing(machine: Machine, tmp_path: Path) -> None:
    """The plugin and the directories that were searched are named."""
    error = machine.refused("bridge", "STATUS", machine.network(), path=str(tmp_path))

    assert error["code"] == 50
    assert f'failed to find plugin "host-local" in path [{tmp_path}]' in error["msg"]


@pytest.mark.parametrize("where", ["state_dir", "data_dir"])
def test_directory_that_cannot_be_written(machine: Machine, where: str) -> None:
    """A state or lease directory that is a file is named."""
    path = Path(getattr(machine, where))
    path.write_text("not a directory")

    error = machine.refused("bridge", "STATUS", machine.network())

    assert error["code"] == 50
    assert str(path) in error["msg"]


def test_state_directory_matters_without_ipam(machine: Machine) -> None:
    """An L2 network needs attachment records as well."""
    Path(machine.state_dir).write_text("not a directory")

    assert machine.refused("bridge", "STATUS", machine.network(ipam=None))["code"] == 50


def test_range_is_exhausted(machine: Machine) -> None:
    """No address left is not ready; one that is freed is."""
    config = small(machine)
    for containerid in ("c1", "c2"):
        machine.ok("bridge", "STATUS", config)
        machine.ok("bridge", "ADD", config, machine.container(), containerid=containerid)

    error = machine.refused("bridge", "STATUS", config)

    assert error["code"] == 50
    assert "no IP addresses available in range set" in error["msg"]
    machine.ok("bridge", "DEL", config, containerid="c1")
    machine.ok("bridge", "STATUS", config)


def test_iptables_is_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The iptables backend without iptables is not ready, and the error knows another."""
    monkeypatch.setattr(iptables, "_PATH", "/nowhere")
    config = machine.network(ipMasq=True, ipMasqBackend="iptables")

    error = machine.refused("bridge", "STATUS", config)

    assert error["code"] == 50
    assert '"ipMasqBackend": "nftables"' in error["msg"]
    machine.ok("bridge", "STATUS", {**config, "ipMasq": False})


def test_kernel_without_nftables(machine: Machine) -> None:
    """The nftables backend on a kernel that refuses it is not ready."""
    refusal = Fault(
        at=1, lasting=True, code=errno.EPROTONOSUPPORT, only=lambda what: what.startswith("nft")
    )

    with faulty(machine, refusal) as host:
        error = machine.refused("bridge", "STATUS", machine.network(ipMasq=True), host=host)

    assert error["code"] == 50
    assert "nftables cannot be used" in error["msg"]


def test_configuration_is_checked(machine: Machine) -> None:
    """STATUS refuses with the same code as ADD would."""
    assert machine.refused("bridge", "STATUS", machine.network(mtu=-1))["code"] == 7


@pytest.mark.both_edges
@pytest.mark.parametrize("version", ["0.1.0", "1.0.0"])
def test_status_needs_1_1(machine: Machine, version: str) -> None:
    """STATUS did not exist before 1.1.0."""
    assert machine.refused("bridge", "STATUS", machine.network(cniVersion=version))["code"] == 1


@contextmanager
def everything_locked(machine: Machine) -> Iterator[None]:
    """Hold the lease store's lock and the records of an attachment, as a stuck ADD does."""
    records = Records(machine.state_dir)
    for plugin in ("bridge", "host-local"):
        assert records.find(plugin, machine.name, Attachment("c1", "eth0"))
    lock = os.open(Path(machine.data_dir, machine.name, "lock"), os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
        records.close()


@pytest.mark.both_edges
def test_status_waits_for_nobody(machine: Machine) -> None:
    """While another call holds every lock there is, STATUS answers."""
    config = machine.network(ipMasq=True, macspoofchk=True)
    machine.ok("bridge", "ADD", config, machine.container())

    with ThreadPoolExecutor(1) as pool, everything_locked(machine):
        answer = pool.submit(machine.invoke, "bridge", "STATUS", config).result(timeout=60)

    assert answer.exit_code == 0


def test_status_of_a_full_network_waits_for_nobody(machine: Machine) -> None:
    """Nor does it wait when it has to look whether a lease of the full range could be reclaimed."""
    config = small(machine)
    for containerid in ("c1", "c2"):
        machine.ok("bridge", "ADD", config, machine.container(), containerid=containerid)

    with ThreadPoolExecutor(1) as pool, everything_locked(machine):
        answer = pool.submit(machine.invoke, "bridge", "STATUS", config).result(timeout=60)

    assert answer.exit_code == 1


def test_status_keeps_nothing_on_disk(machine: Machine) -> None:
    """Its proof of a writable disk leaves no file, after a failure neither."""
    machine.ok("bridge", "STATUS", machine.network())
    full = Fault(at=1, lasting=True, code=errno.ENOSPC, only=lambda what: what == "write record")

    with faulty(machine, full) as host:
        error = machine.refused("bridge", "STATUS", machine.network(), host=host)

    assert error["code"] == 50
    assert files_below(machine.state_dir) == {}


@pytest.mark.both_edges
def test_status_ends_within_a_second(machine: Machine, tmp_path: Path) -> None:
    """An IPAM plugin that does not answer keeps no runtime waiting: some hold a lock meanwhile."""
    (tmp_path / "stuck").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "stuck").chmod(0o755)
    config = machine.network(ipam={"type": "stuck"})
    machine.ok("bridge", "STATUS", machine.network())  # an engine that has to begin takes longer
    begun = time.monotonic()

    error = machine.refused("bridge", "STATUS", config, path=str(tmp_path))

    assert time.monotonic() - begun < longer_if_busy(1.5)  # what starts the call included
    assert "did not answer STATUS within 0.8 s" in error["msg"]
