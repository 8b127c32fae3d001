"""Addresses are given back last: an interface that stays never shares them with another one."""

from __future__ import annotations

import errno

import pytest

from tests.faults.inprocess import Fault, faulty
from tests.kernel.test_persistent_failures import CASES
from tests.machine import Json, Machine

pytestmark = pytest.mark.without_engine(reason="fails in this process")

plugins = pytest.mark.parametrize("name", ["bridge", "ptp", "macvlan"])


def lasting(*operations: str) -> Fault:
    """Return a fault of each operation whose name begins so."""
    return Fault(1, lasting=True, code=errno.ENOBUFS, only=lambda what: what.startswith(operations))


@plugins
def test_del_keeps_the_addresses_of_an_interface_that_stays(machine: Machine, name: str) -> None:
    """They are free once the interface is gone, by the next DEL."""
    call = CASES[name](machine)
    machine.ok(call.plugin, "ADD", call.config, call.netns)
    taken = machine.leases()

    with faulty(machine, lasting("delete interface")) as host:
        machine.refused(call.plugin, "DEL", call.config, call.netns, host=host)

    assert machine.leases() == taken
    assert "eth0" in [link["ifname"] for link in machine.ip(call.netns, "link")]
    assert "addresses stay taken" in " ".join(machine.log)
    machine.ok(call.plugin, "DEL", call.config, call.netns)
    assert machine.leases() == []


@plugins
def test_rollback_keeps_the_addresses_of_an_interface_that_stays(
    machine: Machine, name: str
) -> None:
    """An ADD that fails, and that cannot take its interface back, keeps its addresses for DEL."""
    call = CASES[name](machine)

    with faulty(machine, lasting("add route 0.0.0.0/0", "delete interface")) as host:
        machine.refused(call.plugin, "ADD", call.config, call.netns, host=host)

    assert "eth0" in [link["ifname"] for link in machine.ip(call.netns, "link")]
    (address,) = (one for one in machine.leases() if "." in one)
    shown = [info["local"] for link in machine.ip(call.netns, "addr") for info in link["addr_info"]]
    assert address in shown
    machine.ok(call.plugin, "DEL", call.config, call.netns)
    assert machine.leases() == []


def test_del_keeps_the_addresses_of_a_device_that_stays(machine: Machine) -> None:
    """A device of the host that cannot be moved home may have its addresses: they are not free."""
    machine.do(machine.host, "ip link add nic0 type veth peer name nic9", "ip link set nic0 up")
    usual: Json = {"type": "host-device", "bridge": None, "isGateway": None}
    config, netns = machine.network(**usual, device="nic0"), machine.container()
    machine.ok("host-device", "ADD", config, netns)
    taken = machine.leases()

    with faulty(machine, lasting("set interface", "move", "rename")) as host:
        machine.refused("host-device", "DEL", config, netns, host=host)

    assert len(taken) == 1
    assert machine.leases() == taken
    machine.ok("host-device", "DEL", config, netns)
    assert machine.leases() == []
