"""cni_common/spec/undo.py: taking back, and going on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cni_common.spec.undo import BestEffort, Undo

Step = Callable[[], object]


class Log:
    """Steps that say that they ran."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def good(self, name: str) -> Step:
        """Return a step that succeeds."""
        return lambda: self.done.append(name)

    def bad(self, name: str, error: BaseException | None = None) -> Step:
        """Return a step that fails."""

        def step() -> None:
            self.done.append(name)
            raise error or OSError(5, f"{name} broke")

        return step


def undone(error: BaseException, *steps: tuple[str, Step], undo: Undo | None = None) -> None:
    """Push `steps`, then raise `error`."""
    with undo or Undo() as stack:
        for what, step in steps:
            stack.push(what, step)
        raise error


def attempted(*steps: tuple[str, Step], error: BaseException | None = None) -> None:
    """Attempt `steps`, then raise `error`, if any."""
    with BestEffort() as effort:
        for what, step in steps:
            effort.attempt(what, step)
        if error:
            raise error


class TestUndo:
    """Undo."""

    def test_nothing_to_undo(self) -> None:
        """Without an exception no step is run."""
        log = Log()

        with Undo() as undo:
            undo.push("a", log.good("a"))

        assert log.done == []

    @pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
    def test_order(self, error: BaseException) -> None:
        """With any exception the steps run last-in first-out, and it goes on."""
        log, undo = Log(), Undo()

        with pytest.raises(type(error)) as caught:
            undone(error, ("a", log.good("a")), ("b", log.good("b")), undo=undo)

        assert log.done == ["b", "a"]
        assert caught.value is error
        assert not undo.failed

    def test_failing_step(self) -> None:
        """A step that fails keeps none from running and is noted on the first error."""
        log, undo = Log(), Undo()
        steps = [("a", log.bad("a")), ("b", log.good("b")), ("c", log.bad("c"))]

        with pytest.raises(ValueError, match="first") as caught:
            undone(ValueError("first"), *steps, undo=undo)

        assert log.done == ["c", "b", "a"]
        assert undo.failed
        assert caught.value.__notes__ == [
            "undo of c failed: [Errno 5] c broke",
            "undo of a failed: [Errno 5] a broke",
        ]

    def test_steps_see_the_failure(self) -> None:
        """A step can tell whether one above it has failed."""
        undo = Undo()
        seen: list[bool] = []

        def look() -> None:
            seen.append(undo.failed)

        with pytest.raises(ValueError, match="first"):
            undone(ValueError("first"), ("a", look), ("b", Log().bad("b")), ("c", look), undo=undo)

        assert seen == [False, True]


class TestBestEffort:
    """BestEffort."""

    def test_all_run(self) -> None:
        """Without a failure nothing is raised."""
        log = Log()

        attempted(("a", log.good("a")), ("b", log.good("b")))

        assert log.done == ["a", "b"]

    def test_failures_at_the_end(self) -> None:
        """Every step runs, and the failures come together, each with its name."""
        log = Log()

        with pytest.raises(ExceptionGroup) as caught:
            attempted(("a", log.bad("a")), ("b", log.good("b")), ("c", log.bad("c")))

        assert log.done == ["a", "b", "c"]
        assert caught.value.message == "clean-up is incomplete"
        assert [str(part) for part in caught.value.exceptions] == [
            "[Errno 5] a broke",
            "[Errno 5] c broke",
        ]
        assert [part.__notes__ for part in caught.value.exceptions] == [["a"], ["c"]]

    def test_error_of_the_block(self) -> None:
        """An exception between the steps goes first."""
        log = Log()

        with pytest.raises(ValueError, match="between"):
            attempted(("a", log.bad("a")), error=ValueError("between"))

        assert log.done == ["a"]

    def test_interruption(self) -> None:
        """A BaseException that is no Exception is no failure of a step: it ends the clean-up."""
        log = Log()

        with pytest.raises(KeyboardInterrupt):
            attempted(("a", log.bad("a", KeyboardInterrupt())), ("b", log.good("b")))

        assert log.done == ["a"]
