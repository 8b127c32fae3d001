"""Links of the host that were away and are back: a switch was rebooted, a cable was pulled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel.link import decode_link
from cni_common.kernel.netns import NETLINK_ROUTE
from cni_common.kernel.rtnetlink import RTM_NEWLINK, RTMGRP_LINK

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from plugins.dhcp.daemon.loop import Loop

_IFF_LOWER_UP = 0x10000  # linux/if.h
_PAUSE = 0.1  # seconds between an event and the look: many come at once when containers start


class Carriers:
    """Watches the host's links, and tells which have a carrier again."""

    def __init__(
        self,
        host: NetNS,
        loop: Loop,
        on_return: Callable[[Collection[int], Mapping[int, Link]], object],
    ) -> None:
        """`on_return` gets the indices of links that are back, and all links. Raises OSError."""
        self._host = host
        self._loop = loop
        self._on_return = on_return
        self._had: set[int] = set()  # links that have had a carrier at some time
        self._has: set[int] = set()
        self._is_due = False
        self._events = host.channel(NETLINK_ROUTE, RTMGRP_LINK)
        loop.watch(self._events.sock, self._receive)
        self._look()

    def _receive(self) -> None:
        while events := self._events.read_events():
            for kind, data in events:
                if kind == RTM_NEWLINK and not (link := decode_link(data)).flags & _IFF_LOWER_UP:
                    self._has.discard(link.index)  # it may be back before the look
        if not self._is_due:
            self._is_due = True
            self._loop.call_after(_PAUSE, self._look)

    def _look(self) -> None:
        self._is_due = False
        links = {link.index: link for link in self._host.netlink.links()}
        has = {index for index, link in links.items() if link.flags & _IFF_LOWER_UP}
        # A port of a new container gets its carrier late, but it never had one before.
        returned = (has - self._has) & self._had
        self._has = has
        self._had = (self._had | has) & links.keys()
        if returned:
            self._on_return(returned, links)
