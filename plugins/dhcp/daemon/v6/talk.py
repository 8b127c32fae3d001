"""DHCPv6 over an interface: a socket bound to its link-local address (RFC 8415 section 7)."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from cni_common.kernel.route import IFA_F_DADFAILED, IFA_F_TENTATIVE
from plugins.dhcp.daemon import link
from plugins.dhcp.daemon.link import BATCH, MESSAGE_BYTES
from plugins.dhcp.daemon.v6.packet import CLIENT_PORT, SERVER_PORT, SERVERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.spec.names import Cidr
    from plugins.dhcp.daemon.machine import Send

_UNUSABLE = IFA_F_TENTATIVE | IFA_F_DADFAILED


class Talk(link.Talk):
    """A socket over one interface, until `close`."""

    def __init__(self, netns: NetNS, ours: Link) -> None:
        """Own the handle of the namespace from now on; listen once `is_ready`. Raises OSError."""
        super().__init__(netns, ours, netns.open_socket(socket.AF_INET6, socket.SOCK_DGRAM, 0))
        self._is_bound = False
        self.sock.settimeout(0)

    def is_ready(self) -> bool:
        """Tell whether there is a link-local address that no other machine has.

        Raises OSError when another one has it.
        """
        if not self._is_bound:
            source = _link_local(self.netns, self.link)
            if source:
                _bind(self.sock, self.link, source)
                self._is_bound = True
        return self._is_bound

    def send(self, action: Send) -> None:
        """Send a message to all servers and relays of the link. Raises OSError."""
        if not self.is_ready():
            raise OSError(errno.EADDRNOTAVAIL, "the interface has no link-local address yet")
        _send(self.sock, self.link, action)

    def give_back(self, action: Send, neighbour: str) -> None:
        """Send the last message: like all others. Raises OSError."""
        self.send(action)

    def receive(self) -> Iterator[tuple[bytes, str]]:
        """Yield what has come to the client's port, with the sender's address.

        Servers and relays of the link have a link-local one.
        """
        for _ in range(BATCH):
            try:
                data, sender = self.sock.recvfrom(MESSAGE_BYTES)
            except BlockingIOError:
                return
            address = sender[0].partition("%")[0]
            if address.startswith("fe80:"):
                yield data, address

    def is_duplicate(self, address: Cidr) -> bool | None:
        """Tell whether another machine of the link has an address; None: it is being asked."""
        for cidr, flags in self.netns.netlink.addresses(self.link.index, (6,)):
            if cidr == address and flags & IFA_F_DADFAILED:
                return True
            if cidr == address and flags & IFA_F_TENTATIVE:
                return None
        return False


def send_from_host(host: NetNS, name: str, action: Send) -> None:
    """Send a message over an interface of the host that is on the link. Raises OSError."""
    found = host.netlink.link(name) if name else None
    source = _link_local(host, found) if found else ""
    if found is None or not source:
        raise OSError(errno.ENODEV, f"the host has no IPv6 on that link (interface '{name}')")
    with host.open_socket(socket.AF_INET6, socket.SOCK_DGRAM, 0) as sock:
        sock.settimeout(0)
        with suppress(OSError):  # no answer is awaited: the port may be another program's
            _bind(sock, found, source)
        _send(sock, found, action)


def _bind(sock: socket.socket, ours: Link, source: str) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, ours.name.encode())
    sock.bind((source, CLIENT_PORT, 0, ours.index))


def _send(sock: socket.socket, ours: Link, action: Send) -> None:
    sock.sendto(action.message.encode(), (str(SERVERS), SERVER_PORT, 0, ours.index))


def _link_local(netns: NetNS, ours: Link) -> str:
    """Return a link-local address that can be used, "" as long as there is none.

    Raises OSError when another machine of the link has all of them.
    """
    found = [
        (cidr, flags)
        for cidr, flags in netns.netlink.addresses(ours.index, (6,))
        if cidr.is_link_local
    ]
    usable = [str(cidr.ip) for cidr, flags in found if not flags & _UNUSABLE]
    if not usable and found and all(flags & IFA_F_DADFAILED for _, flags in found):
        text = f"another machine of the link has the link-local address of '{ours.name}'"
        raise OSError(errno.EADDRINUSE, text)
    return usable[0] if usable else ""
