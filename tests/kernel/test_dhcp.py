"""dhcp on a real kernel, beside dnsmasq: ADD, DEL, CHECK, GC, STATUS, the daemon's life."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dhcp import Daemon, Process, daemon_on, dnsmasq, leases_of, running
from tests.machine import Json, Machine

RANGE = "192.0.2.50,192.0.2.59,255.255.255.0,1h"


@pytest.fixture
def daemon(machine: Machine, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon on the machine's host."""
    with daemon_on(machine, tmp_path) as made:
        yield made


@pytest.fixture
def server(machine: Machine, tmp_path: Path) -> Iterator[Process]:
    """dnsmasq behind the host's `uplink`."""
    outside = machine.outside()
    options = (f"--dhcp-range={RANGE}", "--dhcp-option=3,192.0.2.2")
    with running(dnsmasq(outside, tmp_path, *options)) as made:
        yield made


def macvlan(machine: Machine, daemon: Daemon, **keys: Any) -> Json:
    """Return a macvlan configuration on `uplink` with the daemon's leases."""
    usual = {"type": "macvlan", "bridge": None, "isGateway": None, "master": "uplink"}
    return machine.network(**{**usual, "ipam": daemon.ipam(), **keys})


def test_add_and_delete(machine: Machine, server: Process, daemon: Daemon, tmp_path: Path) -> None:
    """A container gets an address of the network's server, which has it back after DEL."""
    config, container = macvlan(machine, daemon), machine.container()

    result = machine.ok("macvlan", "ADD", config, container)

    (ip,) = result["ips"]
    address = ip["address"].partition("/")[0]
    assert (ip["gateway"], ip["interface"]) == ("192.0.2.2", 0)
    assert list(leases_of(tmp_path)) == [address]
    assert machine.addresses(container, "eth0") == [ip["address"]]
    assert machine.ping(container, "192.0.2.2")

    machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
    machine.ok("macvlan", "DEL", config, container)
    server.await_line("DHCPRELEASE")
    assert leases_of(tmp_path) == {}
