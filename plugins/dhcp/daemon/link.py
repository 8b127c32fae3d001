"""The interface of a lease: found in the container's namespace, and spoken over.

A socket in a namespace keeps it alive. So all of it is opened to exchange messages, and closed
as soon as there is an answer.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import NetlinkError
from plugins.dhcp.daemon import frame
from plugins.dhcp.daemon.packet import CLIENT_PORT, EVERYWHERE, SERVER_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Interface

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS

_ETH_P_IP = 0x0800
_SOL_PACKET, _PACKET_AUXDATA, _TP_STATUS_CSUMNOTREADY = 263, 8, 8  # linux/if_packet.h
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
_EVERYBODY = b"\xff" * 6
_MESSAGE_BYTES = 1 << 16
_BATCH = 64  # messages that are read at once: the leases of others must go on
_GONE = (errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENOENT)


class Talk:
    """Sockets over one interface, until `close`."""

    def __init__(self, netns: NetNS, link: Link) -> None:
        """Listen on `link` of `netns`, and own that handle from now on. Raises OSError."""
        self.netns = netns
        self.link = link
        self._unicast: socket.socket | None = None
        # Protocol 0: it receives nothing before the filter is there.
        self.sock = netns.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        try:
            self.sock.settimeout(0)
            self.sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            _attach_filter(self.sock)
            self.sock.bind((link.name, _ETH_P_IP))
        except BaseException:
            self.sock.close()
            raise

    def broadcast(self, source: IPv4Address, payload: bytes) -> None:
        """Send a message to all servers. Raises OSError."""
        self._send(frame.encode(source, EVERYWHERE, payload), _EVERYBODY)

    def unicast(self, source: IPv4Address, server: IPv4Address, payload: bytes) -> None:
        """Send a message to one server, by the routes of the container. Raises OSError.

        Its socket stays open for the answer: the kernel would report that nobody wants that.
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

    def send_to_mac(
        self, source: IPv4Address, server: IPv4Address, payload: bytes, mac: str
    ) -> None:
        """Send a message to a server at once, by way of a neighbour known by its MAC."""
        target = bytes.fromhex(mac.replace(":", ""))
        self._send(frame.encode(source, server, payload), target)

    def receive(self) -> Iterator[tuple[bytes, str]]:
        """Yield what has come from servers, with the MAC of the neighbour that brought it.

        A neighbour may send more than can be read: what is left is there the next time.
        """
        for _ in range(_BATCH):
            try:
                data, extra, _, sender = self.sock.recvmsg(
                    _MESSAGE_BYTES, socket.CMSG_SPACE(_AUXDATA.size)
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

    def is_up(self, host: NetNS) -> bool:
        """Tell whether a message would reach the network: also through a pair's end on the host."""
        link = self.netns.netlink.link_at(self.link.index)
        if link is None or link.operstate not in ("UP", "UNKNOWN"):
            return False
        if link.kind != "veth" or link.peer_nsid is None:
            return True
        if self.netns.netlink.nsid(host.fd) != link.peer_nsid:
            return True
        other = host.netlink.link_at(link.peer)
        return other is None or not other.master or other.operstate == "UP"

    def remove_address(self, address: IPv4Interface) -> None:
        """Remove an address from the interface, if it is there. Raises OSError."""
        try:
            self.netns.netlink.delete_address(self.link.index, address)
        except NetlinkError as error:
            if error.errno not in _GONE:
                raise

    def close(self) -> None:
        """Close everything."""
        for sock in (self.sock, self._unicast):
            if sock:
                sock.close()
        self.netns.close()

    def _send(self, packet: bytes, target: bytes) -> None:
        where = (self.link.name, _ETH_P_IP, 0, 0, target)
        try:
            self.sock.sendto(packet, where)
        except OSError as error:
            if error.errno != errno.ENETDOWN:
                raise
            self.sock.sendto(packet, where)  # it was reported late: the link may be up again


def find(netns: NetNS, ifname: str, index: int = 0, mac: str = "") -> Link | None:
    """Return the interface of a lease: by index, or by name for the first time; None if gone."""
    if index:
        link = netns.netlink.link_at(index)
        return link if link and mac in ("", link.mac) else None
    return netns.netlink.link(ifname)


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
