"""dhcp beside kea, ISC's newer server: what it offers, refuses, forgets, and has not."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.dhcp import Daemon, daemon_on, kea, kept, pull_the_cable, running
from tests.kernel.test_dhcp import address_in, attached, daemon, macvlan, outside
from tests.machine import Json, Machine
from tests.waits import wait_until

__all__ = ["daemon", "outside"]  # fixtures
POOL = ("192.0.2.50", "192.0.2.59")
ALLOCATED = "DHCP4_LEASE_ALLOC"


def test_add_and_delete(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """Address, gateway and DNS are kea's; DEL gives the lease back."""
    options = {
        "routers": "192.0.2.2",
        "domain_name_servers": "192.0.2.53",
        "domain_name": "example.org",
    }
    config = macvlan(machine, daemon)
    with running(kea(outside, tmp_path, *POOL, seconds=600, **options)) as server:
        container, result = attached(machine, config)
        (ip,) = result["ips"]
        assert ip["gateway"] == "192.0.2.2"
        assert ip["address"].endswith("/24")
        assert result["dns"] == {"nameservers": ["192.0.2.53"], "domain": "example.org"}
        assert machine.addresses(container, "eth0") == [ip["address"]]
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)

        machine.ok("macvlan", "DEL", config, container)

        server.await_line(f"DHCP4_RELEASE .*{address_in(result)}")
    assert kept(daemon) == []


def test_pool_exhausted(machine: Machine, outside: str, tmp_path: Path) -> None:
    """The ADD fails, says so, and leaves nothing; a DEL makes room."""
    config: Json
    with (
        daemon_on(machine, tmp_path, "-resendtimeout=1s", "-timeout=300ms") as daemon,
        running(kea(outside, tmp_path, POOL[0], POOL[0], seconds=600)) as server,
    ):
        config = macvlan(machine, daemon)
        first, _ = attached(machine, config)
        container = machine.container()
        before = machine.snapshot(container)

        error = machine.refused("macvlan", "ADD", config, container, containerid="c2")

        server.await_line("ALLOC_ENGINE_V4_ALLOC_FAIL")
        assert error["code"] == 11
        assert machine.snapshot(container) == before
        assert kept(daemon) == [POOL[0]]
        machine.ok("macvlan", "DEL", config, first)
        server.await_line("DHCP4_RELEASE")
        machine.ok("macvlan", "ADD", config, container, containerid="c2")


def test_renewals(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """A lease is renewed in time, and given anew by a server that has lost its leases."""
    config = macvlan(machine, daemon)
    with running(kea(outside, tmp_path, *POOL)) as server:
        container, result = attached(machine, config)
        server.await_line(f"{ALLOCATED}.*{address_in(result)}", 3)
        server.end(signal.SIGKILL)
    for path in tmp_path.glob("kea.leases*"):
        path.unlink()
    with running(kea(outside, tmp_path, *POOL)) as server:
        server.await_line(f"{ALLOCATED}.*{address_in(result)}", 2)
        addresses = [result["ips"][0]["address"]]
        wait_until(lambda: machine.addresses(container, "eth0") == addresses, "it is gone")
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)


def test_server_gone(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """The address goes with its lease, and is back with the server."""
    config = macvlan(machine, daemon)
    with running(kea(outside, tmp_path, *POOL, seconds=2)) as server:
        container, result = attached(machine, config)
        server.end(signal.SIGKILL)
    daemon.process.await_line(f"{address_in(result)} is removed: the lease has expired")
    wait_until(lambda: not machine.addresses(container, "eth0"), "the address stays")

    with running(kea(outside, tmp_path, *POOL)):
        daemon.process.await_line("bound to", 2)
        wait_until(lambda: machine.addresses(container, "eth0"), "the address is not put back")
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)


def test_nak(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """An address that kea has in no pool any more is refused and removed; no other is taken."""
    config = macvlan(machine, daemon)
    with running(kea(outside, tmp_path, *POOL, seconds=600)) as server:
        container, result = attached(machine, config)
        server.end(signal.SIGKILL)
    for path in tmp_path.glob("kea.leases*"):
        path.unlink()
    with running(kea(outside, tmp_path, "192.0.2.90", "192.0.2.99", seconds=600)) as server:
        pull_the_cable(machine, outside)
        daemon.process.await_line("is removed: DHCP server 192.0.2.2 refuses")
        assert machine.addresses(container, "eth0") == []
        told = machine.refused("macvlan", "CHECK", {**config, "prevResult": result}, container)
        assert "has no lease: DHCP server 192.0.2.2 refuses" in told["msg"]
        assert server.count(ALLOCATED) == 0
        machine.ok("macvlan", "DEL", config, container)
