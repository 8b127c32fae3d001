"""Sockets of this process in network namespaces: the server that answers, the peer that it sees."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cni_common.kernel.netns import NetNS
from tests.waits import longer_if_busy

SECONDS = 1.5  # more than a lost neighbour solicitation or SYN takes to be sent again
REFUSALS = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EINVAL)
KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


def open_socket(netns: str, protocol: str, address: str) -> socket.socket:
    """Return a socket inside a namespace, of the family of `address`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    handle = NetNS(netns)
    try:
        sock = handle.run(lambda: socket.socket(family, *KINDS[protocol]))
    finally:
        handle.close()
    sock.settimeout(longer_if_busy(SECONDS))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


class Server:
    """A socket that waits in a namespace."""

    def __init__(self, netns: str, protocol: str, port: int, address: str = "0.0.0.0") -> None:
        self.protocol, self.port = protocol, port
        self.sock = open_socket(netns, protocol, address)
        self.sock.bind((address, port))
        if protocol != "udp":
            self.sock.listen(16)

    def close(self) -> None:
        """Stop waiting."""
        self.sock.close()


@contextmanager
def serving(
    netns: str, protocol: str, port: int, addresses: Sequence[str] = ("0.0.0.0", "::")
) -> Iterator[list[Server]]:
    """Wait on a port of a namespace, by each family."""
    servers = [Server(netns, protocol, port, address) for address in addresses]
    try:
        yield servers
    finally:
        for server in servers:
            server.close()


def asks(
    netns: str,
    server: Server,
    address: str,
    port: int,
    *,
    source: tuple[str, int] | None = None,
    seconds: float = 0.0,
) -> str:
    """Send a question from a namespace; return whom the server saw, "" when no answer came.

    The answer must come from where the question went to, within `seconds` if those are given.
    """
    with open_socket(netns, server.protocol, address) as client:
        if seconds:
            server.sock.settimeout(seconds)
            client.settimeout(seconds)
        try:
            if source:
                client.bind(source)
            client.connect((address, port))
            client.send(b"?")
            seen = answer(server)
            return seen if client.recv(16) == b"!" else ""
        except (TimeoutError, ConnectionError):
            return ""
        except OSError as error:
            if error.errno in REFUSALS:
                return ""
            raise


def answer(server: Server) -> str:
    """Answer one question and return the address of its sender."""
    if server.protocol == "udp":
        _, peer = server.sock.recvfrom(16)
        server.sock.sendto(b"!", peer)
        return str(peer[0])
    connection, peer = server.sock.accept()
    with connection:
        connection.settimeout(longer_if_busy(SECONDS))
        assert connection.recv(16) == b"?"
        connection.send(b"!")
    return str(peer[0])
