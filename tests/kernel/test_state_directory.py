"""Calls where no attachment record can be made: ADD fails at once, and DEL succeeds."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine import Json, Machine
from tests.mounts import detach
from tests.waits import GENEROUS

pytestmark = pytest.mark.without_engine("it has the directory for its socket")

# Options of the file system in which the records would be, and what an ADD says.
PLACES = {
    "read-only": ("ro", "Read-only file system"),
    "full": ("nr_inodes=1", "No space left on device"),
}
PREVIOUS = {
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}, {"name": "vhost"}],
    "ips": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 0}],
}
PORTS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
PLUGINS: dict[str, Json] = {
    "bridge": {"ipMasq": True, "macspoofchk": True},
    "ptp": {"ipMasq": True},
    "host-local": {},
    "portmap": {"runtimeConfig": {"portMappings": PORTS}, "prevResult": PREVIOUS},
    "firewall": {"prevResult": PREVIOUS, "ingressPolicy": "same-bridge"},
    "tuning": {"mtu": 1400, "prevResult": PREVIOUS},
    "bandwidth": {"ingressRate": 1000000, "ingressBurst": 1000000, "prevResult": PREVIOUS},
}


@pytest.fixture(params=PLACES)
def state(machine: Machine, request: pytest.FixtureRequest) -> Iterator[str]:
    """Give the machine a state directory in which nothing can be made; return what is said."""
    options, words = PLACES[request.param]
    path = Path(machine.state_dir)
    path.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"{options},mode=700", "none", str(path)]
    subprocess.run(command, check=True, timeout=GENEROUS)
    yield words
    detach(path)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_nothing_was_made(machine: Machine, state: str, plugin: str) -> None:
    """ADD says what is wrong and changes nothing; STATUS tells before; DEL has nothing to do."""
    container = machine.container()
    config = machine.network(type=plugin, **PLUGINS[plugin])
    if "prevResult" in config:
        machine.do(container, f"ip link add eth0 type veth peer vhost netns {machine.host}")
    before = machine.snapshot(container)

    error = machine.refused(plugin, "ADD", config, container)
    unready = machine.refused(plugin, "STATUS", config)
    machine.ok(plugin, "DEL", config, container)
    machine.ok(plugin, "DEL", config)

    assert state in error["msg"]
    assert machine.state_dir in error["msg"]
    assert (unready["code"], machine.state_dir in unready["msg"]) == (50, True)
    assert machine.snapshot(container) == before


def test_a_record_that_cannot_be_removed(machine: Machine) -> None:
    """Where a record is there but cannot be written, DEL says so, and succeeds when it can."""
    container, config = machine.container(), machine.network(ipMasq=True)
    path = Path(machine.state_dir)
    path.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "none", str(path)], check=True)
    try:
        machine.ok("bridge", "ADD", config, container)
        subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
        error = machine.refused("bridge", "DEL", config, container)
        subprocess.run(["mount", "-o", "remount,rw", str(path)], check=True)
        machine.ok("bridge", "DEL", config, container)
    finally:
        detach(path)

    assert "Read-only file system" in error["msg"]
    assert f"{path}/attachments/bridge-" in error["msg"]
    assert (machine.ports(), machine.leases()) == ([], [])
