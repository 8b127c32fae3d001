"""The daemon's event loop: sockets and timers, in one thread."""

from __future__ import annotations

import heapq
import selectors
import time
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Readable(Protocol):
        """An object with a descriptor."""

        def fileno(self) -> int:
            """Return the descriptor."""


# Seconds: a computer that wakes up has slept through a wait, which does not count that time.
_WAIT_MAX = 30.0


def now() -> float:
    """Return the seconds since the boot, those asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Timer:
    """A function that is called once, at a given time, unless cancelled."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function: Callable[[], object] | None = function

    def cancel(self) -> None:
        """Cancel the call."""
        self.function = None


class Loop:
    """Calls functions when a socket can be read, and at times of the clock."""

    def __init__(self, log_failure: Callable[[Exception], object]) -> None:
        """`log_failure` gets what such a function raises: the loop goes on."""
        self._log_failure = log_failure
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._stopped = False

    def watch(self, sock: Readable, function: Callable[[], object]) -> None:
        """Call `function` whenever `sock` can be read."""
        self._selector.register(sock, selectors.EVENT_READ, function)

    def unwatch(self, sock: Readable) -> None:
        """Call no function for `sock` any more; needed before `sock` is closed."""
        self._selector.unregister(sock)

    def call_at(self, when: float, function: Callable[[], object]) -> Timer:
        """Call `function` at `when`, seconds as `now` has them."""
        timer = Timer(function)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_after(self, seconds: float, function: Callable[[], object]) -> Timer:
        """Call `function` after so many seconds."""
        return self.call_at(now() + seconds, function)

    def stop(self) -> None:
        """Have `run` return."""
        self._stopped = True

    def run(self) -> None:
        """Call functions until `stop`."""
        while not self._stopped:
            self._call_due()
            left = self._timers[0][0] - now() if self._timers else _WAIT_MAX
            for key, _ in self._selector.select(min(max(left, 0), _WAIT_MAX)):
                # An earlier one may have taken it away meanwhile.
                if self._selector.get_map().get(key.fd) is key:
                    self._call(key.data)

    def close(self) -> None:
        """Let go of all sockets, which stay open."""
        self._selector.close()

    def _call_due(self) -> None:
        until = now()
        while self._timers and self._timers[0][0] <= until:
            function = heapq.heappop(self._timers)[2].function
            if function:
                self._call(function)

    def _call(self, function: Callable[[], object]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 - the leases of all others go on
            self._log_failure(error)
