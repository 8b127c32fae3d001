"""A failure in ADD or DEL of dhcp leaves no lease, no record and no interface."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from plugins.dhcp.client import releases_of
from tests.dhcp import Daemon, Process, daemon_on, dnsmasq, leases_of, running
from tests.faults.inprocess import INJECTED, Terminated, faulty
from tests.kernel.sweeps import faults, rehearsal
from tests.machine import Json, Machine, error_of, files_below
from tests.waits import wait_until

pytestmark = [
    pytest.mark.without_engine(reason="fails in this process"),
    pytest.mark.timeout(300),
]
# A failure to close, or to look ahead for the next call, does not fail the call.
TOLERATED = r"open namespace|run .*|disk .*"


class World:
    """A macvlan network with a DHCP server."""

    def __init__(self, machine: Machine, daemon: Daemon, tmp: Path) -> None:
        self.machine, self.daemon, self._tmp = machine, daemon, tmp
        self.container = machine.container()
        keys: Json = {"type": "macvlan", "bridge": None, "isGateway": None, "master": "uplink"}
        self.config = machine.network(**keys, ipam=daemon.ipam())

    def assert_clean(self, what: object) -> None:
        """Demand that nothing is left of any attachment."""
        names = [link["ifname"] for link in self.machine.ip(self.container, "link")]
        assert names == ["lo"], what
        assert list(files_below(self.machine.state_dir)) == [], what
        assert list(self.daemon.leases.glob("*.json")) == [], what
        wait_until(lambda: leases_of(self._tmp) == {}, f"{what}: the server keeps a lease")


@pytest.fixture
def world(machine: Machine, tmp_path: Path) -> Iterator[World]:
    """A network with a server, a daemon and a container."""
    outside = machine.outside()
    options = "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,1h"
    with (
        running(dnsmasq(outside, tmp_path, options)),
        daemon_on(machine, tmp_path, "-timeout=500ms") as daemon,
    ):
        yield World(machine, daemon, tmp_path)


def test_failing_add(world: World) -> None:
    """Each operation of an ADD that fails takes all back, the lease too."""
    machine, failed = world.machine, 0
    call = (machine, "macvlan", "ADD", world.config, world.container)
    for fault in faults(rehearsal(*call)):
        with faulty(machine, fault) as host:
            reply = machine.invoke("macvlan", "ADD", world.config, world.container, host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
            world.assert_clean(fault.what)
        else:
            assert re.fullmatch(TOLERATED, fault.what)
        machine.ok("macvlan", "DEL", world.config, world.container)
        world.assert_clean(fault.what)

    assert failed > 4
    machine.ok("macvlan", "DEL", world.config, world.container)
    world.assert_clean("the whole ADD")


def test_terminated_add(world: World) -> None:
    """So does SIGTERM, wherever it comes."""
    machine = world.machine
    call = (machine, "macvlan", "ADD", world.config, world.container)
    for fault in faults(rehearsal(*call), terminate=True):
        with faulty(machine, fault) as host, suppress(Terminated):
            machine.ok("macvlan", "ADD", world.config, world.container, host=host)
        if not fault.happened:
            break
        world.assert_clean(fault.what)

    assert len(fault.done) > 5
    machine.ok("macvlan", "DEL", world.config, world.container)


def test_failing_delete(world: World) -> None:
    """After each DEL that fails the next one finishes it."""
    machine = world.machine
    call = (machine, "macvlan", "DEL", world.config, world.container)
    for fault in faults(rehearsal(*call)):
        machine.ok("macvlan", "ADD", world.config, world.container)
        with faulty(machine, fault) as host:
            machine.invoke("macvlan", "DEL", world.config, world.container, host=host)
        machine.ok("macvlan", "DEL", world.config, world.container)
        world.assert_clean(fault.what if fault.happened else "the whole DEL")
        if not fault.happened:
            break


def test_failures_that_persist_do_not_block_a_delete(world: World) -> None:
    """No daemon, and no way to note the release: DEL succeeds, and the daemon finds out later."""
    machine = world.machine
    machine.ok("macvlan", "ADD", world.config, world.container)
    world.daemon.process.end()
    Path(releases_of(world.daemon.socket)).write_text("a file where the directory belongs")

    for _ in range(2):
        machine.ok("macvlan", "DEL", world.config, world.container)

    assert list(files_below(machine.state_dir)) == []
    assert any("cannot note in" in line for line in machine.log)
    assert [link["ifname"] for link in machine.ip(world.container, "link")] == ["lo"]


def test_leases_that_cannot_be_written(world: World) -> None:
    """The container keeps its address, and DEL gives it back; only a restart would lose it."""
    machine, directory = world.machine, world.daemon.leases
    directory.rename(directory.with_name("moved"))

    machine.ok("macvlan", "ADD", world.config, world.container)

    world.daemon.process.await_line("cannot write its lease")
    machine.ok("macvlan", "CHECK", {**world.config, "prevResult": _result(world)}, world.container)
    directory.with_name("moved").rename(directory)
    machine.ok("macvlan", "DEL", world.config, world.container)
    world.assert_clean("a lease that was not written")


def _result(world: World) -> Json:
    """Return the result of the second ADD of the same attachment, by dhcp itself."""
    found = world.machine.ok("dhcp", "ADD", world.config, world.container)
    (ip,) = found["ips"]
    interface = {"name": "eth0", "sandbox": world.container}
    return {"interfaces": [interface], "ips": [{**ip, "interface": 0}], "routes": found["routes"]}


def test_damaged_leases(world: World, tmp_path: Path) -> None:
    """A damaged file costs its own lease alone; a damaged note of a release nothing."""
    machine = world.machine
    machine.ok("macvlan", "ADD", world.config, world.container)
    world.daemon.process.end()
    (path,) = world.daemon.leases.glob("*.json")
    (world.daemon.leases / "damaged.json").write_text(path.read_text()[:99])
    queue = Path(releases_of(world.daemon.socket))
    queue.mkdir(mode=0o700)
    for name, text in (("1-1", "{"), ("2-2", json.dumps({"network": 5})), ("3.new", "")):
        (queue / name).write_text(text)

    process: Process = world.daemon.start()

    assert process.count("is damaged, and put aside") == 1
    assert process.count("cannot read") == 2
    machine.ok("macvlan", "DEL", world.config, world.container)
    world.assert_clean("damage")
    assert len(list(tmp_path.glob("**/*.damaged"))) == 1
