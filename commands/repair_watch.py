"""`pycni repair --watch`: repairs whenever the kernel tells of a change, and sleeps otherwise.

Some changes send no kernel event: for these the watch looks by itself, seldom.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cni_common.kernel.netns import NETLINK_NETFILTER, NETLINK_ROUTE, OWN
from cni_common.node.host import Host
from cni_common.serve.protocol import execute
from cni_common.spec.errors import CNIError
from commands import DONE, changes, repair, view
from commands.verb import words_of

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator

    from cni_common.kernel.netlink import Channel
    from cni_common.kernel.netns import NetNS
    from commands.missing import Missing

    Check = Callable[[int, bytes], bool]

_DATAGRAMS_MAX = 1000  # of one channel before the other one is read
SETTLE_SECONDS = 0.02  # after an event: a flush sends many
PAUSE_SECONDS = 0.1  # between two looks at least
_IDLE_FACTOR = 4  # pause as many times as long as a look takes: at most a fifth of a processor
# One more look after the last event. An attachment is passed over while a call works on it.
AGAIN_SECONDS = 2.0
# One without any event, for what sends none; with very many attachments it takes a hundredth of a
# processor.
BY_ITSELF_SECONDS = 30.0
_SELDOM_FACTOR = 100
_SILENT = "iptables-legacy, route_localnet and firewalld's zones"


class Watch:
    """The events of a network namespace, and when to look after them."""

    def __init__(self, netns: NetNS) -> None:
        """Subscribe. Raises OSError."""
        self._checks: dict[int, tuple[Channel, Check]] = {}
        for protocol, groups, check in (
            (NETLINK_ROUTE, changes.GROUPS, changes.is_change),
            (NETLINK_NETFILTER, changes.NFT_GROUPS, changes.is_loss),
        ):
            channel = netns.channel(protocol, groups)
            self._checks[channel.sock.fileno()] = channel, check
        self._poll = select.poll()
        for fd in self._checks:
            self._poll.register(fd, select.POLLIN)

    def run(self, look: Callable[[], object], end: int) -> None:
        """Call `look` at once, after each change and seldom without one, until `end` can be read.

        `end` is a descriptor. A `look` that changes something causes another one.
        """
        self._poll.register(end, select.POLLIN)
        due = 0.0  # when to look without an event
        while True:
            left = max(due - time.monotonic(), 0) * 1000
            ready = [fd for fd, _ in self._poll.poll(left)]
            if end in ready:
                return
            if ready and not self._has_news(ready):
                continue
            if ready and self._sleeps(SETTLE_SECONDS, end):
                return
            self._has_news([*self._checks])
            begun = time.monotonic()
            look()
            took = time.monotonic() - begun
            if self._sleeps(max(PAUSE_SECONDS, _IDLE_FACTOR * took), end):
                return
            seldom = max(BY_ITSELF_SECONDS, _SELDOM_FACTOR * took)
            due = time.monotonic() + (AGAIN_SECONDS if ready else seldom)

    def _has_news(self, ready: list[int]) -> bool:
        """Read what has arrived; tell whether an event is a reason to look, or events were lost."""
        found = False
        for fd in ready:
            channel, check = self._checks[fd]
            for _ in range(_DATAGRAMS_MAX):
                events = channel.next_events()
                if events is not None and not events:
                    break
                found = found or events is None or any(_is_reason(check, *one) for one in events)
        return found

    @staticmethod
    def _sleeps(seconds: float, end: int) -> bool:
        """Wait; return True at once when the end has come."""
        return bool(select.select([end], [], [], seconds)[0])


def _is_reason(check: Check, kind: int, part: bytes) -> bool:
    try:
        return check(kind, part)
    except (ArithmeticError, LookupError, ValueError, struct.error):
        return True  # of a form that no kernel has yet


def run(options: Namespace, host: Host, is_meant: Callable[[str], bool]) -> int:
    """Repair until SIGTERM, SIGINT or SIGHUP. Raises OSError."""
    told: set[Missing] = set()

    def tell_lost(one: Missing) -> None:
        if one not in told:
            told.add(one)
            host.log(f"lost until the container is started anew: {one.owner}: {one.what}")

    def look() -> None:
        with _host_like(host, own) as fresh:
            try:
                restored = repair.put_back(
                    fresh, options.data_dir, is_meant=is_meant, inside=False, tell_lost=tell_lost
                )
            except (CNIError, OSError, ExceptionGroup) as error:
                host.log(f"not all was put back: {words_of(error)}")
                return
        if options.json and restored:
            view.write_json({"restored": [one.json() for one in restored]}, in_line=True)

    host.log(
        f"watching; every {BY_ITSELF_SECONDS:g} s a look by itself, as no kernel event tells of"
        f" changes by {_SILENT}"
    )
    own = host.make_netns(OWN, -1)  # whose sockets stay open from look to look
    try:
        with terminated() as end:
            Watch(host.netns).run(look, end)
    finally:
        own.close()
    return DONE


def _host_like(host: Host, own: NetNS) -> Host:
    """Return a Host that has opened no container: paths may be other namespaces' by now."""
    return Host(
        host.load,
        host.executable,
        host.log,
        execute=execute,
        guarded=True,
        own=own,
        state_dir=host.state_dir,
    )


@contextmanager
def terminated() -> Iterator[int]:
    """Yield a descriptor that can be read once SIGTERM, SIGINT or SIGHUP has arrived."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def note(_number: int, _frame: object) -> None:
        os.write(writing, b"x")

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield reading
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)
