"""TCP as on a plain host: listeners and queues, visible peers, options on the wire."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import ExitStack

import pytest

from tests.dataplane.tcpinfo import ESTABLISHED, SYN_SENT, tcp_info
from tests.dataplane.wiring import Wire, bounded, error_of, firewall, proc_net, wait_until

CROWD = 64


def test_accept(wire: Wire) -> None:
    """A listener is reached at its address and port, sees its peer, and both sides talk."""
    with wire.listener() as listener, wire.client_socket() as client:
        client.connect(listener.getsockname())
        server, peer = listener.accept()
        with server:
            client.sendall(b"question")
            question = bounded(server).recv(16)
            server.sendall(b"answer")

            assert (question, client.recv(16)) == (b"question", b"answer")
            assert peer[0] == wire.seen_as
            assert client.getpeername() == server.getsockname() == listener.getsockname()


def test_bind(wire: Wire) -> None:
    """A port is had once, and an address only by whose it is."""
    with wire.listener() as listener, wire.server_socket() as other:
        taken = error_of(lambda: other.bind(listener.getsockname()))
    with wire.client_socket() as client:
        foreign = error_of(lambda: client.bind((wire.address, 0)))

    assert (taken, foreign) == (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


def test_refused(wire: Wire) -> None:
    """Where no program listens, a connection and a datagram are refused."""
    with wire.server_socket() as silent, wire.client_socket() as client:
        silent.bind((wire.address, 0))
        with pytest.raises(ConnectionRefusedError):
            client.connect(silent.getsockname())
    with wire.datagrams() as (sender, server):
        server.close()
        sender.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(16)


def test_end_and_reset(wire: Wire) -> None:
    """Each direction ends by itself; a reset is told from an end."""
    with wire.connection() as (client, server):
        client.shutdown(socket.SHUT_WR)
        assert server.recv(16) == b""
        server.sendall(b"late")
        assert client.recv(16) == b"late"
    with wire.connection() as (client, server):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionResetError):
            server.recv(16)


def test_crowd(wire: Wire) -> None:
    """All that connect while nobody accepts wait in the backlog, and each gets its own answer."""
    with wire.listener(backlog=CROWD) as listener, ExitStack() as stack:
        clients = [stack.enter_context(wire.client_socket()) for _ in range(CROWD)]
        for number, client in enumerate(clients):
            client.connect(listener.getsockname())
            client.sendall(bytes([number]))
        for _ in clients:
            with bounded(listener.accept()[0]) as server:
                server.sendall(server.recv(1) * 3)

        answers = [client.recv(16, socket.MSG_WAITALL) for client in clients]

    assert answers == [bytes([number]) * 3 for number in range(CROWD)]


def test_full_backlog(wire: Wire) -> None:
    """A full backlog keeps the next client waiting, not refused, and has room after accept."""
    with wire.listener(backlog=1) as listener, ExitStack() as stack:
        clients = [stack.enter_context(wire.client_socket()) for _ in range(3)]
        for client in clients[:2]:  # the kernel keeps one more than was asked for
            client.connect(listener.getsockname())
        wait_until(lambda: tcp_info(listener).unacked == 2, "both in the backlog")
        before = overflows(wire)
        late = clients[2]
        late.settimeout(0)

        assert late.connect_ex(listener.getsockname()) == errno.EINPROGRESS

        wait_until(lambda: overflows(wire) > before, "a SYN for which there is no room")
        assert tcp_info(late).state == SYN_SENT
        for client in clients:
            with bounded(listener.accept()[0]) as server:
                server.sendall(b"!")
            assert bounded(client).recv(16) == b"!"


def overflows(wire: Wire) -> int:
    """Return how often a listener of the server had no room."""
    names, values = map(str.split, proc_net(wire.server, "netstat").splitlines()[:2])  # TcpExt
    return int(values[names.index("ListenOverflows")])


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_reuseport(wire: Wire, kind: socket.SocketKind) -> None:
    """Two sockets on one port share what comes: each of 64 is told to one, both have some."""
    with ExitStack() as stack:
        servers = [stack.enter_context(wire.server_socket(kind)) for _ in range(2)]
        for server in servers:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            server.bind((wire.address, servers[0].getsockname()[1]))
            if kind == socket.SOCK_STREAM:
                server.listen(CROWD)
        for number in range(CROWD):
            client = stack.enter_context(wire.client_socket(kind))
            client.connect(servers[0].getsockname())
            client.send(bytes([number]))

        shares: list[list[int]] = [[], []]

        def complete() -> bool:
            for server, share in zip(servers, shares, strict=True):
                share += _taken(server, kind)
            return len(shares[0]) + len(shares[1]) == CROWD

        wait_until(complete, "all of them")

    assert sorted(shares[0] + shares[1]) == list(range(CROWD))
    assert all(shares), "by chance once in 2^63"


def _taken(server: socket.socket, kind: socket.SocketKind) -> list[int]:
    """Return the numbers that have come to a server since it was last asked."""
    found: list[int] = []
    server.settimeout(0)
    for _ in range(CROWD):
        try:
            if kind == socket.SOCK_DGRAM:
                found += server.recv(1)
            else:
                with bounded(server.accept()[0]) as connection:
                    found += connection.recv(1)
        except BlockingIOError:
            break
    return found


@pytest.mark.parametrize("nodelay", [True, False], ids=["nodelay", "delay"])
def test_nodelay(wire: Wire, nodelay: bool) -> None:
    """With TCP_NODELAY each write is a segment of its own; without it they wait for an answer."""
    writes = 8  # less than the first window
    with wire.connection() as (client, server):
        for _ in range(4):  # a conversation: the kernel delays acknowledgements
            client.sendall(b"?")
            assert server.recv(1) == b"?"
            server.sendall(b"!")
            assert client.recv(1) == b"!"
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, nodelay)
        before = tcp_info(server).data_segs_in

        for number in range(writes):
            client.send(bytes([number]))

        assert server.recv(writes, socket.MSG_WAITALL) == bytes(range(writes))
        segments = tcp_info(server).data_segs_in - before
    assert segments == writes if nodelay else segments < writes


def test_keepalive(wire: Wire) -> None:
    """An idle connection is probed and the peer answers; without an answer it ends."""
    with wire.connection() as (client, server):
        for name, value in (("IDLE", 1), ("INTVL", 1), ("CNT", 1)):
            option = getattr(socket, f"TCP_KEEP{name}")
            client.setsockopt(socket.IPPROTO_TCP, option, value)
        arrived, answered = tcp_info(server).segs_in, tcp_info(client).segs_in

        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

        wait_until(lambda: tcp_info(server).segs_in > arrived, "a probe")
        wait_until(lambda: tcp_info(client).segs_in > answered, "an answer to it")
        assert tcp_info(client).state == tcp_info(server).state == ESTABLISHED
        port = server.getsockname()[1]
        with firewall(wire.server, f"tcp dport {port} drop"), pytest.raises(TimeoutError) as end:
            client.recv(16)
    assert end.value.errno == errno.ETIMEDOUT
