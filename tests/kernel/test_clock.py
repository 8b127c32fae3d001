"""`pycni reclaim` and dhcp while the clock is set by a day: it is really set."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import DONE, FOUND
from tests.dhcp import Daemon, daemon_on, dhcpd, running
from tests.kernel.test_commands import age, asked
from tests.kernel.test_dhcp import SUBNET, attached, macvlan
from tests.kernel.test_host_local_clock import clock_set_by
from tests.machine import Machine, addresses_of

pytestmark = [
    pytest.mark.full_kernel,
    pytest.mark.later_user_mode,  # the clock is set
    pytest.mark.timeout(300),
]
DAY = 86_400
LEASE_SECONDS = 6  # it is renewed after a half
# The server has the same clock: without this it gives what its old lease lacks, which may be a day.
NO_CACHE = "dhcp-cache-threshold 0;"

jumps = pytest.mark.parametrize("jump", [DAY, -DAY], ids=["forward", "back"])


@pytest.fixture
def daemon(machine: Machine, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon on the machine's host."""
    with daemon_on(machine, tmp_path, "-timeout=500ms") as made:
        yield made


@pytest.mark.rotating(2)
@jumps
def test_reclaim(machine: Machine, jump: float) -> None:
    """Two looks a minute apart decide, and no clock that somebody sets makes a minute of less."""
    config = machine.network(type="ptp", bridge=None, isGateway=None)
    dead, alive = machine.container(), machine.container()
    machine.ok("ptp", "ADD", config, dead, containerid="dead")
    result = machine.ok("ptp", "ADD", config, alive, containerid="alive")
    machine.end(dead)

    with clock_set_by(jump):
        for _ in range(3):
            assert asked(machine, "reclaim", status=FOUND)["removed"] == []
    assert asked(machine, "reclaim", status=FOUND)["removed"] == []
    assert machine.leases() == ["10.9.0.2", "10.9.0.3"]

    for status in (FOUND, DONE):
        age(machine)
        asked(machine, "reclaim", status=status if jump < 0 else DONE)
    assert machine.leases() == ["10.9.0.3"]
    machine.ok("ptp", "CHECK", {**config, "prevResult": result}, alive, containerid="alive")


@pytest.mark.rotating(2)
@jumps
def test_dhcp(machine: Machine, daemon: Daemon, tmp_path: Path, jump: float) -> None:
    """A lease neither ends early nor late: it is renewed in time, by a new daemon, too."""
    config = macvlan(machine, daemon)
    outside = machine.outside()
    with running(dhcpd(outside, tmp_path, NO_CACHE, SUBNET, seconds=LEASE_SECONDS)) as server:
        container, result = attached(machine, config)

        def renewed(times: int) -> float:
            seen, begun = server.count("DHCPACK"), time.monotonic()
            server.await_line("DHCPACK", seen + times)
            assert daemon.process.count("expired") == 0
            assert machine.addresses(container, "eth0") == [result["ips"][0]["address"]]
            return time.monotonic() - begun

        renewed(1)
        with clock_set_by(jump):
            assert renewed(2) >= LEASE_SECONDS / 2
            machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
            daemon.process.end(signal.SIGKILL)
            daemon.start("-timeout=500ms")
            renewed(1)
        assert renewed(2) >= LEASE_SECONDS / 2
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
        machine.ok("macvlan", "DEL", config, container)
        server.await_line(f"DHCPRELEASE of {addresses_of(result)[0]}")
