"""dummy: what is refused, also by kernels that lack it. Its life is in test_devices.py."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernel.test_devices import NOTHING, left
from tests.machine import Json, Machine, error_of

IPV4 = "10.54.0.0/24"


def network(machine: Machine, **keys: Any) -> Json:
    """Return a dummy configuration."""
    ipam = {"type": "host-local", "dataDir": machine.data_dir, "ranges": [[{"subnet": IPV4}]]}
    usual = {"type": "dummy", "bridge": None, "isGateway": None}
    return machine.network(**{**usual, "ipam": ipam, **keys})


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
        pytest.skip("this kernel has dummies: tests/vm runs the tests of test_devices.py")

    error = error_of(reply.stdout)
    assert (error["code"], "module 'dummy'" in error["msg"]) == (50, True)
    assert left(machine, container) == NOTHING
    machine.ok("dummy", "DEL", network(machine), container)
