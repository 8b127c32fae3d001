"""Wake-ups of the reconcile loop: causes are gathered, not queued, so their number has a bound."""

from __future__ import annotations

import threading
import time

_CAUSES_MAX = 32
_OTHERS = "others"  # stands for all causes beyond that


class Wake:
    """Called with a cause by any thread; the one thread that reconciles waits for causes.

    `settle_seconds` is how long `wait` goes on gathering after the first cause: a storm of kernel
    events becomes one reconcile.
    """

    def __init__(self, settle_seconds: float = 0.05) -> None:
        self._settle_seconds = settle_seconds
        self._condition = threading.Condition()
        self._causes: set[str] = set()
        self._is_stopping = False

    def __call__(self, cause: str) -> None:
        """Have the loop run once more. Never blocks for long, so event threads may call it."""
        with self._condition:
            is_known = cause in self._causes
            if not is_known and len(self._causes) >= _CAUSES_MAX:
                cause = _OTHERS
            self._causes.add(cause)
            self._condition.notify_all()

    def stop(self) -> None:
        """Have `wait` return None from now on."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify_all()

    @property
    def is_stopping(self) -> bool:
        """Tell whether `stop` was called."""
        return self._is_stopping

    def wait(self, seconds: float) -> frozenset[str] | None:
        """Return the causes since the last call, none after `seconds`; None: to stop."""
        with self._condition:
            self._condition.wait_for(lambda: self._causes or self._is_stopping, seconds)
            if self._causes:
                deadline = time.monotonic() + self._settle_seconds
                while not self._is_stopping and (left := deadline - time.monotonic()) > 0:
                    self._condition.wait(left)
            if self._is_stopping:
                return None
            causes = frozenset(self._causes)
            self._causes.clear()
            return causes
