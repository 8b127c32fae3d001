"""What passes an interface: all frames of it, as a packet socket sees them."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections import Counter
from collections.abc import Iterable

from agent.cluster import Address, Network
from cni_common.kernel.netns import NetNS

_ETH_P_ALL = 3  # linux/if_ether.h
_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # linux/if_packet.h
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_BUFFER = 64 << 20  # bytes
_FRAME_MAX = 1 << 16
_ETHERNET = 14  # bytes of the header
_V4, _V6 = b"\x08\x00", b"\x86\xdd"  # of IP, as Ethernet names the versions


class Wire:
    """The frames of an interface of a namespace, from the making of this object on.

    `is_bare`: the interface is a tunnel, whose packets have no header of Ethernet.
    """

    def __init__(self, netns: str, name: str, *, is_bare: bool = False) -> None:
        handle = NetNS(netns)
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._sock = handle.open_socket(socket.AF_PACKET, kind, socket.htons(_ETH_P_ALL))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._sock.bind((name, _ETH_P_ALL))
        self._is_bare = is_bare
        handle.close()

    def packets(self) -> list[bytes]:
        """Return the packets of IP until now, and end. Raises AssertionError where one was lost."""
        found = []
        try:
            while True:
                frame = self._sock.recv(_FRAME_MAX)
                if self._is_bare:
                    found.append(frame)
                elif frame[12:_ETHERNET] in (_V4, _V6):
                    found.append(frame[_ETHERNET:])
        except BlockingIOError:
            told = self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        finally:
            self._sock.close()
        _, lost = struct.unpack("II", told)
        assert not lost, f"the socket had no room for {lost} frames"
        return found


def kinds(packets: Iterable[bytes]) -> Counter[tuple[int, int]]:
    """Return how many packets of IPv4 there are, by protocol and UDP destination port, else 0."""
    found: Counter[tuple[int, int]] = Counter()
    for packet in packets:
        if packet[0] >> 4 == 4:
            (port,) = struct.unpack_from("!H", packet, 22)
            found[packet[9], port if packet[9] == socket.IPPROTO_UDP else 0] += 1
    return found


def ends(packet: bytes) -> tuple[Address, Address]:
    """Return the addresses of a packet."""
    first, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
    source, target = (packet[at : at + size] for at in (first, first + size))
    return ipaddress.ip_address(source), ipaddress.ip_address(target)


def of_networks(packets: Iterable[bytes], networks: Iterable[Network]) -> list[bytes]:
    """Return the packets from or to addresses of some networks."""
    ranges = list(networks)
    return [one for one in packets if any(end in net for end in ends(one) for net in ranges)]
