"""A look at all namespaces: which addresses count, and that no namespace can stop it."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from cni_common.kernel.netns import identity
from cni_common.node import namespaces
from tests.mounts import bind, detach
from tests.waits import longer_if_busy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cni_common.spec.names import Address
    from tests.machine import Machine

pytestmark = pytest.mark.without_engine("calls functions of this process")

ADDRESS = ip_address("10.9.0.2")
USER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urn")
# Has 10.9.0.2 and as many more as its first argument says; with "churn" another comes and goes.
NEIGHBOUR = """
import socket, struct, sys
link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
def send(kind, flags, address):
    body = struct.pack("=BBBBI", 2, 32, 0, 0, 1)
    for number in (2, 1):
        body += struct.pack("=HH4s", 8, number, address)
    link.send(struct.pack("=IHHII", 16 + len(body), kind, flags | 1, 1, 0) + body)
send(20, 0x600, socket.inet_aton("10.9.0.2"))
for number in range(int(sys.argv[1])):
    send(20, 0x600, bytes([10, 99, number >> 8, number & 255]))
print(flush=True)
while sys.argv[2] == "churn":
    send(20, 0x600, bytes([10, 98, 0, 1]))
    send(21, 0, bytes([10, 98, 0, 1]))
sys.stdin.read()
"""


@contextmanager
def neighbour(*start: str, more: int = 0, churn: bool = False) -> Iterator[str]:
    """Give the path of the namespace of a NEIGHBOUR that is started by `start`."""
    how = "churn" if churn else "stay"
    process = subprocess.Popen(
        [*start, "python3", "-c", NEIGHBOUR, str(more), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    try:
        assert process.stdout.readline() == b"\n"
        yield f"/proc/{process.pid}/ns/net"
    finally:
        process.kill()
        process.communicate(timeout=60)


def seen(*paths: str) -> tuple[set[Address], list[str]]:
    """Return the addresses that count, and the log."""
    log: list[str] = []
    return set(namespaces.addresses_in(paths, log.append)), log


def test_addresses_of_a_local_user_prove_nothing() -> None:
    """A user without rights keeps no lease from being freed, and no look from its end."""
    with neighbour(*USER, more=500, churn=True) as path:
        started = time.monotonic()
        found, log = seen(path)
        known = namespaces.reachable()

        assert (found, log) == (set(), [])
        assert time.monotonic() - started < longer_if_busy(1)
        # A container that a record names by its identity lives, whatever user namespace owns it.
        assert identity(path) in known


def test_addresses_of_a_pod_with_a_user_namespace_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Runtimes mount the namespaces of such pods where root alone can."""
    monkeypatch.setattr(namespaces, "_MOUNTED", (str(tmp_path),))
    mount = tmp_path / "cni-1"
    with neighbour(*USER) as path:
        bind(path, mount)
        try:
            known = namespaces.reachable()[identity(path)]

            assert known == str(mount)
            assert seen(known) == ({ADDRESS}, [])
        finally:
            detach(mount)


def test_a_container_whose_addresses_change_all_the_time(machine: Machine) -> None:
    """Its visible addresses count, and other namespaces are read, too, within the limit of time."""
    other = machine.container()
    machine.do(other, "ip addr add 10.9.0.3/24 dev lo")
    inside = ("nsenter", f"--net={machine.container()}")
    with neighbour(*inside, more=1500, churn=True) as path:
        started = time.monotonic()
        found, log = seen(path, other)

        assert {ADDRESS, ip_address("10.9.0.3")} <= found
        assert time.monotonic() - started < longer_if_busy(namespaces._SECONDS + 1)
        assert all(path in line for line in log)  # a dump may pass between two changes


@pytest.mark.parametrize(("limit", "value"), [("_ADDRESSES_MAX", 100), ("_SECONDS", 0)])
def test_limits_of_one_namespace(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """A look ends at the limits of one namespace, and the log names that namespace."""
    inside = ("nsenter", f"--net={machine.container()}")
    monkeypatch.setattr(namespaces, limit, value)
    with neighbour(*inside, more=500) as path:
        found, log = seen(path)

    assert len(found) == (100 if limit == "_ADDRESSES_MAX" else 0)
    assert len(log) == 1
    assert f"network namespace '{path}'" in log[0]
