"""The interface of a lease: found in the container's namespace, and spoken over.

A socket in a namespace keeps it alive. So all of it is opened to exchange messages, and closed
as soon as there is an answer.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import NetlinkError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netlink import Channel
    from cni_common.kernel.netns import NetNS
    from cni_common.spec.names import Cidr
    from plugins.dhcp.daemon.machine import Send

BATCH = 64  # messages that are read at once: the leases of others must go on
MESSAGE_BYTES = 1 << 16
_GONE = (errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENOENT)


class Talk(ABC):
    """Sockets over one interface, until `close`."""

    def __init__(self, netns: NetNS, link: Link, sock: socket.socket) -> None:
        """Own the handle of the namespace from now on, and a socket in it."""
        self.netns = netns
        self.link = link
        self.sock = sock
        self.changes: Channel | None = None  # events of the interface's addresses, if awaited

    @abstractmethod
    def send(self, action: Send) -> None:
        """Send a message to a server, or to all. Raises OSError."""

    @abstractmethod
    def give_back(self, action: Send, neighbour: str) -> None:
        """Send the last message at once, by a neighbour's MAC if that is known. Raises OSError."""

    @abstractmethod
    def receive(self) -> Iterator[tuple[bytes, str]]:
        """Yield messages that have come from servers, each with the MAC or address of its sender.

        A neighbour may send more than can be read: the rest is there the next time.
        """

    def is_ready(self) -> bool:
        """Tell whether the interface has what a message is sent from. Raises OSError."""
        return True

    def is_duplicate(self, address: Cidr) -> bool | None:
        """Tell whether another machine of the link has an address; None: it is being asked."""
        return False

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

    def remove_address(self, address: Cidr) -> None:
        """Remove an address from the interface, if it is there. Raises OSError."""
        try:
            self.netns.netlink.delete_address(self.link.index, address)
        except NetlinkError as error:
            if error.errno not in _GONE:
                raise

    def close(self) -> None:
        """Close everything."""
        self.sock.close()
        self.netns.close()


def find(netns: NetNS, ifname: str, index: int = 0, mac: str = "") -> Link | None:
    """Return the interface of a lease: by index, or by name for the first time; None if gone."""
    if index:
        link = netns.netlink.link_at(index)
        return link if link and mac in ("", link.mac) else None
    return netns.netlink.link(ifname)
