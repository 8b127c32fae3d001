"""Files and datagrams arrive byte for byte by each method of sending."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.dataplane import transfer
from tests.dataplane.wiring import Wire

SIZE = (4 << 20) + 4321  # more than all buffers on the way, no multiple of a page
DATAGRAM = 60_000  # some 40 fragments


@pytest.fixture(scope="session")
def content() -> bytes:
    """The bytes that are sent: no two blocks of them are the same."""
    return random.Random(0).randbytes(SIZE)


@pytest.mark.parametrize("name", transfer.NAMES)
def test_file(
    wire: Wire, name: str, content: bytes, program: Callable[[str], Path], tmp_path: Path
) -> None:
    """A file arrives complete and unchanged, from client to server and back."""
    method = transfer.method(name, program)
    sent, there, back = (tmp_path / part for part in ("sent", "there", "back"))
    sent.write_bytes(content)
    with wire.connection() as (client, server), ThreadPoolExecutor(1) as side:
        receiving = side.submit(method.receive, server, there)
        method.send(client, sent)
        receiving.result()
        receiving = side.submit(method.receive, client, back)
        method.send(server, there)
        receiving.result()

    assert there.read_bytes() == content, "from client to server"
    assert back.read_bytes() == content, "and back"


def test_fragments(wire: Wire, content: bytes) -> None:
    """A datagram of many fragments arrives whole, and so does the answer."""
    with wire.datagrams() as (client, server):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * DATAGRAM)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * DATAGRAM)
        client.send(content[:DATAGRAM])
        question, peer = server.recvfrom(DATAGRAM + 1)
        server.sendto(content[-DATAGRAM:], peer)
        answer = client.recv(DATAGRAM + 1)

    assert peer[0] == wire.seen_as
    assert question == content[:DATAGRAM]
    assert answer == content[-DATAGRAM:]
