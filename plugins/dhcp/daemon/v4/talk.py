"""DHCPv4 over an interface: a packet socket, as there may be no address, and one for renewals."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from plugins.dhcp.daemon import link
from plugins.dhcp.daemon.link import BATCH, MESSAGE_BYTES
from plugins.dhcp.daemon.v4 import frame
from plugins.dhcp.daemon.v4.packet import CLIENT_PORT, EVERYWHERE, SERVER_PORT, Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from plugins.dhcp.daemon.machine import Send

_ETH_P_IP = 0x0800
_SOL_PACKET, _PACKET_AUXDATA, _TP_STATUS_CSUMNOTREADY = 263, 8, 8  # linux/if_packet.h
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
_EVERYBODY = b"\xff" * 6


class Talk(link.Talk):
    """Sockets over one interface, until `close`."""

    def __init__(self, netns: NetNS, ours: Link) -> None:
        """Listen on `ours` in `netns`, and own that handle from now on. Raises OSError."""
        # Protocol 0: it receives nothing before the filter is there.
        super().__init__(netns, ours, netns.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
        self._unicast: socket.socket | None = None
        try:
            self.sock.settimeout(0)
            self.sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            _attach_filter(self.sock)
            self.sock.bind((ours.name, _ETH_P_IP))
        except BaseException:
            self.sock.close()
            raise

    def send(self, action: Send) -> None:
        """Send a message to a server, or to all. Raises OSError."""
        message = action.message
        assert isinstance(message, Message)
        if action.server:
            self._send_to(message.ciaddr, action.server, message.encode())
        else:
            self._broadcast(message.ciaddr, message.encode())

    def give_back(self, action: Send, neighbour: str) -> None:
        """Send a RELEASE at once, by the neighbour that has brought the lease. Raises OSError."""
        message = action.message
        assert isinstance(message, Message)
        if neighbour and action.server:
            target = bytes.fromhex(neighbour.replace(":", ""))
            self._send(frame.encode(message.ciaddr, action.server, message.encode()), target)
        else:
            self._broadcast(message.ciaddr, message.encode())

    def _broadcast(self, source: IPv4Address, payload: bytes) -> None:
        self._send(frame.encode(source, EVERYWHERE, payload), _EVERYBODY)

    def _send_to(self, source: IPv4Address, server: IPv4Address, payload: bytes) -> None:
        """Send a message to one server, by the routes of the container.

        Its socket stays open for the answer: else the kernel would report a closed port.
        """
        if self._unicast is None:
            sock = self.netns.open_socket(socket.AF_INET, socket.SOCK_DGRAM, 0)
            try:
                sock.settimeout(0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.link.name.encode())
                sock.bind((str(source), CLIENT_PORT))
            except BaseException:
                sock.close()
                raise
            self._unicast = sock
        self._unicast.sendto(payload, (str(server), SERVER_PORT))

    def receive(self) -> Iterator[tuple[bytes, str]]:
        """Yield what has come from servers, with the MAC of the neighbour that brought it."""
        for _ in range(BATCH):
            try:
                data, extra, _, sender = self.sock.recvmsg(
                    MESSAGE_BYTES, socket.CMSG_SPACE(_AUXDATA.size)
                )
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENETDOWN:  # reported once, when the link goes down
                    continue
                raise
            found = frame.decode(data, is_checked=_is_checked(extra))
            if found:
                yield found.payload, sender[4].hex(":")

    def close(self) -> None:
        """Close everything."""
        if self._unicast:
            self._unicast.close()
        super().close()

    def _send(self, packet: bytes, target: bytes) -> None:
        where = (self.link.name, _ETH_P_IP, 0, 0, target)
        try:
            self.sock.sendto(packet, where)
        except OSError as error:
            if error.errno != errno.ENETDOWN:
                raise
            self.sock.sendto(packet, where)  # it was reported late: the link may be up again


def send_from_host(server: IPv4Address, payload: bytes) -> None:
    """Send a message to a server by the routes of the host. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0)
        # Servers expect a client's port, and answer nothing: it may be another program's.
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("0.0.0.0", CLIENT_PORT))
        sock.sendto(payload, (str(server), SERVER_PORT))


def _attach_filter(sock: socket.socket) -> None:
    """Have the kernel drop what is not for us: a container may get a million packets a second."""
    import ctypes

    program = ctypes.create_string_buffer(frame.FILTER, len(frame.FILTER))
    # struct sock_fprog of linux/filter.h
    described = struct.pack("@HP", frame.FILTER_LENGTH, ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def _is_checked(extra: list[tuple[int, int, bytes]]) -> bool:
    """Tell whether the kernel says that the checksum is still to be computed."""
    for level, kind, data in extra:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA) and len(data) >= _AUXDATA.size:
            return bool(_AUXDATA.unpack_from(data)[0] & _TP_STATUS_CSUMNOTREADY)
    return False
