"""The thread that reads kernel events and says when others have changed something of ours."""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from typing import TYPE_CHECKING

from agent.network import masquerade, masquerade_config, watched
from cni_common.kernel.netns import NETLINK_NETFILTER, NETLINK_ROUTE, OWN, NetNS

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.network.watched import Watched
    from cni_common.kernel.netlink import Channel

_DATAGRAMS_MAX = 1000  # of one channel before the other one is read
_REASONS_MAX = 10
_PAUSE_MAX = 60.0  # seconds, after errors
PAUSE_SECONDS = 0.1  # after a wake-up: a program that fights with us does not take a processor


class Listener:
    """Calls `wake` with each reason from a thread of its own, at most ten times a second.

    `known` returns what was applied last, and the seconds between looks at the file `path`, which
    is in the format of ip-masq-agent; "" for no file.
    """

    def __init__(
        self,
        wake: Callable[[str], None],
        known: Callable[[], tuple[Watched, float]],
        *,
        path: str = "",
    ) -> None:
        """Start to listen in the network namespace of the calling thread. Raises OSError."""
        self._wake, self._known, self._path = wake, known, path
        self._netns = NetNS(OWN)
        try:
            routing = self._netns.channel(NETLINK_ROUTE, watched.GROUPS)
            self._netfilter = self._netns.channel(NETLINK_NETFILTER, watched.NFT_GROUPS)
            self._channels = routing, self._netfilter
            self._ending, self._end = os.pipe2(os.O_CLOEXEC)
        except OSError:
            self._netns.close()
            raise
        self._stamp = masquerade_config.stamp(path) if path else None
        self._thread = threading.Thread(target=self._run, name="kernel events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and wait until it has ended."""
        os.write(self._end, b"x")
        self._thread.join()
        os.close(self._ending)
        os.close(self._end)
        self._netns.close()

    def _run(self) -> None:
        poll = select.poll()
        for fd in (self._ending, *(one.sock.fileno() for one in self._channels)):
            poll.register(fd, select.POLLIN)
        look_at, pause = time.monotonic() + self._known()[1], PAUSE_SECONDS
        while True:
            left = max(look_at - time.monotonic(), 0) if self._path else None
            ready = [fd for fd, _ in poll.poll(None if left is None else left * 1000)]
            if self._ending in ready:
                return
            try:
                reasons, pause = self._read(), PAUSE_SECONDS
            except OSError:  # events may be lost, so all is read anew
                reasons = [watched.LOST]
                pause = min(2 * max(pause, 1.0), _PAUSE_MAX)
            if self._path and time.monotonic() >= look_at:
                look_at = time.monotonic() + self._known()[1]
                reasons += self._look()
            for reason in reasons:
                self._wake(reason)
            if reasons and select.select([self._ending], [], [], pause)[0]:
                return

    def _read(self) -> list[str]:
        """Return what the events that have arrived say, each once, and not more than some."""
        known, _ = self._known()
        reasons: dict[str, None] = {}
        for channel in self._channels:
            for _ in range(_DATAGRAMS_MAX):
                events = channel.next_events()
                if events is None:
                    reasons[watched.LOST] = None
                elif not events:
                    break
                for kind, part in events or ():
                    reason = self._reason_of(channel, kind, part, known)
                    if reason == watched.PODS or (reason and len(reasons) < _REASONS_MAX):
                        reasons[reason] = None
        return [*reasons]

    def _reason_of(self, channel: Channel, kind: int, part: bytes, known: Watched) -> str:
        try:
            if channel is self._netfilter:
                return watched.nft_reason(kind, part, known, masquerade.TABLE)
            return watched.reason(kind, part, known)
        except (ArithmeticError, LookupError, ValueError, struct.error):
            return watched.LOST  # of a form that no kernel has yet: then all is read anew

    def _look(self) -> list[str]:
        """Return words if the file has changed since the last look."""
        stamp = masquerade_config.stamp(self._path)
        if stamp == self._stamp:
            return []
        self._stamp = stamp
        return [f"'{self._path}' was changed"]
