"""AF_XDP in copy mode: datagrams taken off and put onto the container's interface."""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.dataplane.wiring import IFNAME, SECONDS, Wire

PORT = 18081
SIZES = (20, 64, 999, 1400)
_SKIPPED = 77  # of xdp.c: the kernel refuses


@contextmanager
def echo(program: Path, netns: str) -> Iterator[subprocess.Popen[str]]:
    """Have xdp.c run at a container's interface."""
    with subprocess.Popen(
        ["nsenter", f"--net={netns}", "--", program, IFNAME, str(PORT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                reason = process.communicate(timeout=SECONDS)[1].strip()
                assert process.returncode == _SKIPPED, reason
                pytest.skip(f"no AF_XDP here: {reason}")
            yield process
        finally:
            process.kill()


def test_echo(wire: Wire, program: Callable[[str], Path]) -> None:
    """The container's AF_XDP socket gets what comes for a port and answers; nothing else does."""
    source = random.Random(0)
    datagrams = [source.randbytes(size) for size in SIZES for _ in range(8)]
    with (
        wire.server_socket(socket.SOCK_DGRAM) as server,
        wire.client_socket(socket.SOCK_DGRAM) as client,
    ):
        server.bind((wire.address, 0))
        client.bind(("", PORT))
        client.sendto(b"it is me", server.getsockname())
        peer = server.recvfrom(64)[1]
        with echo(program("xdp"), wire.client) as process:
            for datagram in datagrams:
                server.sendto(datagram, peer)
                assert server.recvfrom(2048) == (datagram, peer)
            count = process.communicate(timeout=SECONDS)[0]

        assert int(count) == len(datagrams)
        server.sendto(b"it has ended", peer)
        assert client.recv(64) == b"it has ended", "the first for the client's own socket"
