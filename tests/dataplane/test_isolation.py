"""Objects of one namespace are neither visible nor reachable from another, or the node."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.dataplane.wiring import IFNAME, Wiring, bounded, command, error_of, firewall, inside

PORT = 18080
ABSTRACT = "\0pycni-dataplane"
_ETH_P_ALL = 3  # linux/if_ether.h
_SOL_PACKET, _ADD_MEMBERSHIP, _PROMISC = 263, 1, 1  # linux/socket.h, linux/if_packet.h


@contextmanager
def listening(netns: str) -> Iterator[None]:
    """Have a listener on all addresses of a namespace, and a unix socket that is in no file."""
    with (
        inside(netns, socket.socket) as sock,
        inside(netns, lambda: socket.socket(socket.AF_UNIX)) as local,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", PORT))
        sock.listen()
        local.bind(ABSTRACT)
        local.listen()
        yield


def test_ports(namespaces: list[str]) -> None:
    """A port that is taken in one container is free in all others, where nothing answers on it."""
    owner, *others = namespaces
    with listening(owner):
        for netns in others:
            assert connecting(netns) == (errno.ECONNREFUSED, errno.ECONNREFUSED)
            with listening(netns):
                assert connecting(netns) == (0, 0)
        assert connecting(owner) == (0, 0)
        with inside(owner, socket.socket) as second:
            assert error_of(lambda: second.bind(("0.0.0.0", PORT))) == errno.EADDRINUSE


def connecting(netns: str) -> tuple[int, int]:
    """Return how a namespace's own listeners are reached: errors, 0 for success."""
    with (
        bounded(inside(netns, socket.socket)) as sock,
        inside(netns, lambda: socket.socket(socket.AF_UNIX)) as local,
    ):
        tcp = error_of(lambda: sock.connect(("127.0.0.1", PORT)))
        return tcp, error_of(lambda: local.connect(ABSTRACT))


# Commands, and what they show of `marked`.
VIEWS = {
    "sockets": ("ss -Htan", f":{PORT}"),
    "sockets, by /proc": ("cat /proc/net/tcp", f":{PORT:04X}"),
    "unix sockets": ("ss -Hxan", ABSTRACT[1:]),
    "unix sockets, by /proc": ("cat /proc/net/unix", ABSTRACT[1:]),
    "interfaces": ("ip -o link", "mark0"),
    "interfaces, by /proc": ("cat /proc/net/dev", "mark0"),
    "addresses": ("ip -o address", "198.51.100.1"),
    "routes": ("ip route show table all", "203.0.113.0"),
    "routes, by /proc": ("cat /proc/net/route", "007100CB"),
    "rules": ("ip rule", "203.0.113.9"),
    "neighbours": ("ip neighbour", "198.51.100.2"),
    "firewall": ("nft list ruleset", "dport 9 drop"),
    "sysctls": ("cat /proc/sys/net/ipv4/tcp_keepalive_time", "7199"),
}


@contextmanager
def marked(netns: str) -> Iterator[None]:
    """Have in a namespace what each of VIEWS shows."""
    make = """
        ip link add mark0 type bridge
        ip address add 198.51.100.1/24 dev mark0
        ip link set mark0 up
        ip route add 203.0.113.0/24 dev mark0
        ip rule add from 203.0.113.9 lookup main priority 900
        ip neighbour add 198.51.100.2 lladdr 02:00:00:00:00:02 dev mark0
        echo 7199 >/proc/sys/net/ipv4/tcp_keepalive_time
        """
    remove = """
        ip rule delete priority 900
        ip link delete mark0
        echo 7200 >/proc/sys/net/ipv4/tcp_keepalive_time
        """
    command(netns, "sh", "-ec", make)
    try:
        with listening(netns), firewall(netns, "tcp dport 9 drop"):
            yield
    finally:
        command(netns, "sh", "-ec", remove)


def test_views(namespaces: list[str]) -> None:
    """No view of a container or of the node shows anything of another one."""
    for owner in namespaces:
        with marked(owner):
            shown = {
                netns: {name for name, (line, mark) in VIEWS.items() if mark in view(netns, line)}
                for netns in namespaces
            }

        assert shown.pop(owner) == set(VIEWS)
        assert set().union(*shown.values()) == set()


def view(netns: str, line: str) -> str:
    """Return what a command line shows inside of a namespace."""
    return command(netns, *line.split())


def test_frames(wiring: Wiring) -> None:
    """A container that takes all frames it can get has none between others, as by a switch."""
    wire = wiring.wire("outside", 4)
    with sniffer(wiring.netns("c2")) as neighbour, sniffer(wire.client) as own:
        with wire.connection() as (client, server):
            client.sendall(b"secret question")
            assert server.recv(64) == b"secret question"
            server.sendall(b"secret answer")
            assert client.recv(64) == b"secret answer"
        with wire.client_socket(socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(b"for everybody", ("255.255.255.255", PORT))

        assert sum(b"secret" in frame for frame in frames(own)) >= 2
        assert [frame for frame in frames(neighbour) if b"secret" in frame] == []


def sniffer(netns: str) -> socket.socket:
    """Return a socket that has all frames of a container's interface, others' too."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        sock.bind((IFNAME, _ETH_P_ALL))
        request = struct.pack("iHH8x", socket.if_nametoindex(IFNAME), _PROMISC, 0)
        sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, request)
        return bounded(sock)

    return inside(netns, make)


def frames(sock: socket.socket) -> Iterator[bytes]:
    """Give what has come to a sniffer before what is for everybody."""
    while b"for everybody" not in (frame := sock.recv(1 << 16)):
        yield frame
