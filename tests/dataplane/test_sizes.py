"""Packets up to the MTU arrive; larger ones are refused, or answered by the hop that drops them."""

from __future__ import annotations

import errno
import socket

import pytest

from tests.dataplane.tcpinfo import tcp_info
from tests.dataplane.wiring import JUMBO_MTU, Wire, Wiring, error_of, wait_until

MTU = 1500
HEADERS = {4: 20, 6: 40}  # of IP; UDP's is 8, TCP's is 32 with timestamps
_PMTU = {
    4: (socket.IPPROTO_IP, 10, 14),  # IP_MTU_DISCOVER, IP_MTU: linux/in.h
    6: (socket.IPPROTO_IPV6, 23, 24),  # linux/in6.h
}
_PMTUDISC_DO = 2


def test_largest(wire: Wire) -> None:
    """Packets as large as the MTU arrive in one piece, and one byte more is an error at once."""
    check_largest(wire, MTU)


@pytest.mark.parametrize("version", [4, 6])
def test_jumbo(wiring: Wiring, version: int) -> None:
    """So do those of a network with large frames."""
    check_largest(wiring.wire("jumbo2", version, client="jumbo1"), JUMBO_MTU)


def check_largest(wire: Wire, mtu: int) -> None:
    """Send the largest datagram and the largest segments that fit in `mtu`."""
    size = mtu - HEADERS[wire.version] - 8
    with wire.datagrams() as (client, server):
        never_fragment(client, wire.version)
        client.send(bytes(size))
        assert len(server.recv(size + 1)) == size
        assert error_of(lambda: client.send(bytes(size + 1))) == errno.EMSGSIZE
    with wire.connection() as (client, server):
        client.sendall(bytes(10 * mtu))
        assert len(server.recv(10 * mtu, socket.MSG_WAITALL)) == 10 * mtu
        assert tcp_info(client).snd_mss == mtu - HEADERS[wire.version] - 32


@pytest.mark.parametrize("version", [4, 6])
def test_path(wiring: Wiring, version: int) -> None:
    """Behind the node frames are smaller: it says so, also to masqueraded senders."""
    wire = wiring.wire("outside", version, client="jumbo1")
    level, _, option = _PMTU[version]
    size = MTU - HEADERS[version] - 8
    with wire.datagrams() as (client, server):
        never_fragment(client, version)
        client.send(bytes(size + 1))
        wait_until(lambda: client.getsockopt(level, option) == MTU, "the node's message")
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
        client.send(bytes(size))
        assert len(server.recv(size + 1)) == size
    with wire.connection() as (client, server):
        client.sendall(bytes(100_000))
        assert len(server.recv(100_000, socket.MSG_WAITALL)) == 100_000


def never_fragment(sock: socket.socket, version: int) -> None:
    """Have a packet that is too large refused, here or on its way."""
    level, option, _ = _PMTU[version]
    sock.setsockopt(level, option, _PMTUDISC_DO)
