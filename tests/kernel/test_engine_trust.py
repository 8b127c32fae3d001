"""Launcher and engine hand nothing to a process that only looks like the other one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engines import BUILD, BUNDLE_STATUS, socket_path
from tests.kernel.test_engine import run
from tests.machine import Machine

pytestmark = [
    pytest.mark.without_engine(reason="starts engines of its own"),
    pytest.mark.timeout(120),
]

# A process of a container to which the directory of the socket is mounted: root, and otherwise in
# namespaces of its own.
CONTAINER = ("unshare", "--mount", "--net", sys.executable, "-c")

IMPOSTOR = """
import socket, struct, sys
path, build = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(path)
listener.listen(8)
print("listening", flush=True)
connection, _ = listener.accept()
connection.settimeout(20)
connection.send(b"pycni\\0" + struct.pack("<H", 3) + bytes(16) + build.encode())
data, descriptors, _, _ = socket.recv_fds(connection, 999, 9)
print("got", len(data), len(descriptors), flush=True)
"""

ATTACKER = """
import os, socket, struct, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
if os.fork():
    os._exit(0)  # its number is free from now on; the child has the connection
sock.settimeout(60)
environment = os.memfd_create("environment")
os.write(environment, b"CNI_COMMAND=STATUS")
try:
    request = sock.recv(99)[8:24] + struct.pack("<I", 8) + b"loopback"
    socket.send_fds(sock, [request], [0, 1, 2, environment])
    status = sock.recv(9)
except OSError:
    status = b""
print("status", len(status), flush=True)
"""


def test_a_container_that_listens_at_the_socket_gets_no_request(machine: Machine) -> None:
    """The launcher asks a process in other namespaces for nothing, and starts its own program."""
    socket_path().parent.mkdir(exist_ok=True)
    socket_path().unlink(missing_ok=True)  # of an engine of another test, which was killed
    words = (*CONTAINER, IMPOSTOR, str(socket_path()), BUILD)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as impostor:
        assert impostor.stdout is not None
        assert impostor.stdout.readline() == "listening\n"
        try:
            status = run(machine, "ADD", machine.network(), machine.container())
            received = impostor.stdout.readline()
        finally:
            impostor.kill()
            socket_path().unlink()

    assert status == BUNDLE_STATUS
    assert received == "got 0 0\n"


def test_a_process_id_that_was_reused_is_not_served(machine: Machine) -> None:
    """A container's connection is refused, also when its process id is one of the host by now."""
    engine = machine.start_engine(workers=1)
    (worker,) = engine.workers()
    os.kill(worker, signal.SIGSTOP)  # as if it were busy
    words = ("nsenter", f"--net={machine.host}", *CONTAINER, ATTACKER, str(socket_path()))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as attacker:
        attacker.wait(30)
        with process_with_id(attacker.pid, machine):
            os.kill(worker, signal.SIGCONT)
            assert attacker.stdout is not None
            said = attacker.stdout.readline()

    assert said == "status 0\n"
    assert run(machine, "STATUS", machine.network()) == 0


@contextmanager
def process_with_id(pid: int, machine: Machine) -> Iterator[None]:
    """Have a process of the machine's host that has a process id which was in use before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen(["nsenter", f"--net={machine.host}", "sleep", "60"])
        try:
            if process.pid == pid:
                yield
                return
        finally:
            process.kill()
            process.wait()
    raise AssertionError("other processes take the number each time")
