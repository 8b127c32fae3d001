"""Behaviour at a failed step: roll everything back (ADD), or go on to the end (DEL, GC)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

# Descriptors that a step may need: a pipe's ends for a delegate, or a lease, its index and a lock.
_SPARE = 4


class Undo:
    """A stack of steps that roll back an ADD, run last-in first-out if the block raises.

    Push steps for objects of this attachment only, after every check that can refuse the request.
    Shared state (a bridge, a forwarding sysctl) may already serve another container. A step that
    fails becomes a note of the exception; the other steps still run.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []
        self._spare: list[int] = []
        self.failed = False  # whether a step of the rollback failed

    def reserve(self) -> None:
        """Keep descriptors for the steps: an ADD may fail since there is none left. Raises OSError.

        To be called before anything is made.
        """
        if not self._spare:
            self._spare.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
        while len(self._spare) < _SPARE:
            self._spare.append(os.dup(self._spare[0]))  # a third of what another open costs

    def push(self, what: str, step: Callable[[], object]) -> None:
        """Add the `step` that undoes `what`; it must succeed also if there is nothing to undo."""
        self._steps.append((what, step))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        # Steps refer to their request, and some to this object: a circle that would keep both.
        steps, self._steps = self._steps, []
        for fd in self._spare:
            os.close(fd)
        self._spare.clear()
        if error is None:
            return
        interrupted: BaseException | None = None
        for what, step in reversed(steps):
            try:
                step()
            except BaseException as failure:  # noqa: BLE001 - the first error is reported
                self.failed = True
                error.add_note(f"undo of {what} failed: {failure}")
                if not isinstance(failure, Exception):  # a signal: the other steps still run
                    interrupted = failure
        if interrupted:
            raise interrupted from error


class BestEffort:
    """Runs every step of a clean-up; the end of the block raises all failures as one group."""

    def __init__(self) -> None:
        self._failures: list[Exception] = []

    def attempt(self, what: str, step: Callable[[], object]) -> bool:
        """Run `step`, and keep its failure, with `what` as a note, for the end; tell of success."""
        try:
            step()
        except Exception as failure:  # noqa: BLE001 - reported together by __exit__
            failure.add_note(what)
            self._failures.append(failure)
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if error is None and self._failures:
            raise ExceptionGroup("clean-up is incomplete", self._failures)
