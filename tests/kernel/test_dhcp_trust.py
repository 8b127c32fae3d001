"""The dhcp plugin and its daemon hand nothing to a process of a container, though that is root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.dhcp import Daemon, Process, kept
from tests.kernel.test_dhcp import attached, daemon, macvlan, outside, server
from tests.kernel.test_engine_trust import process_with_id
from tests.machine import Machine
from tests.resident import start_in
from tests.waits import GENEROUS

__all__ = ["daemon", "outside", "server"]  # fixtures

# Root of a container to which the directory of the socket is mounted.
CONTAINER = ("unshare", "--mount", "--net", "/usr/bin/python3", "-c")


def test_a_container_that_plays_the_daemon(machine: Machine, tmp_path: Path) -> None:
    """No plugin asks it for an address or hands it a namespace, and DEL is done without it."""
    path = tmp_path / "dhcp.sock"
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "print('ready', flush=True)\n"
        "while True: print(*map(len, socket.recv_fds(s.accept()[0], 99, 9)[:2]), flush=True)"
    )
    machine.outside()
    container = machine.container()
    config = machine.network(
        type="macvlan",
        bridge=None,
        isGateway=None,
        master="uplink",
        ipam={"type": "dhcp", "daemonSocketPath": str(path)},
    )
    with start_in(machine.host, *CONTAINER, script, str(path), stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        error = machine.refused("macvlan", "ADD", config, container)
        machine.ok("macvlan", "DEL", config, container)
        heard = [process.stdout.readline() for _ in range(2)]
        process.kill()

    assert error["code"] == 50
    assert "a process of a container listens there" in error["msg"]
    assert heard == [b"0 0\n"] * 2
    assert machine.link(container, "eth0") is None


RELEASE = """
import json, os, socket, struct, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.settimeout(60)
if sys.argv[3:] and os.fork():
    os._exit(0)  # its number is free from now on; the child has the connection
call = json.dumps({"version": 1, "call": "release", **json.loads(sys.argv[2])}).encode()
try:
    sock.sendall(struct.pack(">I", len(call)) + call)
    answer = sock.recv(99)
except OSError:
    answer = b""
print(len(answer), flush=True)
"""


def test_a_container_releases_no_lease(machine: Machine, server: Process, daemon: Daemon) -> None:
    """A container's root that gets to the socket takes no address away from a living container."""
    config = macvlan(machine, daemon)
    container, result = attached(machine, config)
    key = json.dumps({"network": machine.name, "containerid": "c1", "ifname": "eth0"})
    with start_in(
        machine.host, *CONTAINER, RELEASE, daemon.socket, key, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.read() == b"0\n"

    daemon.process.await_line("refuses a call: a process of a container")
    machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
    assert len(kept(daemon)) == 1


def test_a_process_id_of_a_caller_that_was_reused(
    machine: Machine, server: Process, daemon: Daemon
) -> None:
    """A container's call is refused, also when its process id is one of the host by now."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 5):
        pytest.skip("before Linux 6.5 a process at the other end of a socket is a number")
    config = macvlan(machine, daemon)
    container, result = attached(machine, config)
    key = json.dumps({"network": machine.name, "containerid": "c1", "ifname": "eth0"})
    words = (*CONTAINER, RELEASE, daemon.socket, key, "reused")
    daemon.process.process.send_signal(signal.SIGSTOP)  # as if it were busy
    with start_in(machine.host, *words, stdout=subprocess.PIPE) as process:
        process.wait(GENEROUS)
        with process_with_id(process.pid, machine):
            daemon.process.process.send_signal(signal.SIGCONT)
            assert process.stdout
            assert process.stdout.read() == b"0\n"

    machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
    assert len(kept(daemon)) == 1
