"""Interfaces that several workers delete at the same time go by one message.

The kernel waits for its readers on each deletion (15 ms and more, under the lock of all of
rtnetlink), and for a group of interfaces (IFLA_GROUP) it waits once. A worker asks the supervisor;
what arrives while the supervisor is at work is its next batch, so nobody waits for company.
"""

import errno
import os
import socket
import struct
from functools import cached_property

from cni_common.netlink import NetlinkError
from cni_common.netns import NETLINK_ROUTE, OWN, NetNS
from cni_common.rtnetlink import Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_common.netlink import Channel

_REQUEST = struct.Struct("=Ii")  # number of the request, index of the interface
_ANSWER = struct.Struct("=Ii")  # number of the request, errno


class Asker:
    """A worker's end of the conversation."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._number = 0

    def delete(self, index: int) -> int | None:
        """Return errno of the deletion, 0 when it is done; None when there is no supervisor."""
        self._number = self._number + 1 & 0xFFFFFFFF
        try:
            self._sock.send(_REQUEST.pack(self._number, index))
            while answer := self._sock.recv(_ANSWER.size):
                number, code = _ANSWER.unpack(answer)
                if number == self._number:  # else of a request that was overdue
                    return int(code)
        except ConnectionError:
            return None
        return None


class GatheredNetNS(NetNS):
    """The host's namespace as a worker has it: its links are deleted together with others'."""

    def __init__(self, asker: Asker) -> None:
        super().__init__(OWN)
        self._asker = asker

    @cached_property
    def netlink(self) -> Netlink:
        """rtnetlink in this namespace."""
        return _GatheredNetlink(self.channel(NETLINK_ROUTE), self._asker)


class _GatheredNetlink(Netlink):
    def __init__(self, channel: "Channel", asker: Asker) -> None:
        super().__init__(channel)
        self._asker = asker

    def delete_link(self, index: int) -> bool:
        """Delete an interface; False when there was none."""
        code = self._asker.delete(index)
        if code is None:
            return super().delete_link(index)
        if code not in (0, errno.ENODEV):
            raise NetlinkError(code, f"delete interface {index}: {os.strerror(code)}")
        return code == 0


class Gatherer:
    """The supervisor's end: it does at once whatever has been asked for."""

    def __init__(self) -> None:
        self._netns = NetNS(OWN)

    def serve(self, socks: "Sequence[socket.socket]") -> "list[socket.socket]":
        """Answer what waits on `socks`, which do not block; return those whose workers ended."""
        requests, ended = [], []
        for sock in socks:
            try:
                request = sock.recv(_REQUEST.size)
            except BlockingIOError:
                continue
            except ConnectionError:
                request = b""
            if request:
                requests.append((sock, *_REQUEST.unpack(request)))
            else:
                ended.append(sock)
        codes = self._delete([index for _, _, index in requests]) if requests else []
        for (sock, number, _), code in zip(requests, codes, strict=True):
            try:
                sock.send(_ANSWER.pack(number, code))
            except (ConnectionError, BlockingIOError):
                continue  # its worker ended, or has given up this and many others
        return ended

    def _delete(self, indexes: "Sequence[int]") -> list[int]:
        """Return errno of each deletion."""
        try:
            found = self._netns.netlink.delete_links(indexes)
        except OSError:
            return [self._delete_one(index) for index in indexes]
        return [0 if one else errno.ENODEV for one in found]

    def _delete_one(self, index: int) -> int:
        try:
            return 0 if self._netns.netlink.delete_link(index) else errno.ENODEV
        except NetlinkError as error:
            return error.errno or errno.EIO
        except OSError as error:  # no answer: one that comes late must not be taken for another's
            self._netns.close()
            self._netns = NetNS(OWN)
            return error.errno or errno.EIO
