"""/healthz: by it the kubelet ends an agent whose loop hangs, and no other."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from agent import loop
from agent.health import Health
from agent.metrics import Metrics
from tests.waits import GENEROUS, longer_if_busy, wait_until


class ReleasedError(Exception):
    """The round need not go on."""


class Round:
    """A round that hangs where it begins, as one does whose disk does not answer."""

    def __init__(self) -> None:
        self._go_on = threading.Event()
        remembered = SimpleNamespace(load=lambda _node: None)
        parts = SimpleNamespace(before=self._hang, remembered=remembered)
        self.loop = loop.Loop(cast("loop.Parts", parts), "a")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Have the round end."""
        self._go_on.set()
        self._thread.join(GENEROUS)

    def _run(self) -> None:
        with pytest.raises(ReleasedError):
            self.loop.round(frozenset())

    def _hang(self) -> None:
        self._go_on.wait(GENEROUS)
        raise ReleasedError


@pytest.fixture
def hanging() -> Iterator[Round]:
    """Give a round that hangs."""
    made = Round()
    yield made
    made.end()


def answer(health: Health) -> tuple[int, str]:
    """Return what a probe gets."""
    try:
        with urlopen(f"http://127.0.0.1:{health.address[1]}/healthz", timeout=GENEROUS) as reply:
            return reply.status, reply.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_a_round_that_hangs_fails_the_probe(
    hanging: Round, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It fails after the bound alone, says how long that is, and not once the round has ended."""
    metrics = Metrics(tmp_path)
    health = Health(("127.0.0.1", 0), alive=hanging.loop.alive, ready=tuple, metrics=metrics)
    try:
        assert answer(health) == (200, "ok\n")
        monkeypatch.setattr(loop, "_STUCK_SECONDS", 0.2)
        wait_until(lambda: answer(health)[0] == 503, "a round that hangs counts as alive")
        assert "a round has taken more than" in answer(health)[1]
        hanging.end()
        assert answer(health) == (200, "ok\n")
    finally:
        health.close()


def test_slow_clients_keep_no_probe_away(tmp_path: Path) -> None:
    """However many connections say nothing, or little, a probe has its answer at once."""
    health = Health(("127.0.0.1", 0), alive=lambda: "", ready=tuple, metrics=Metrics(tmp_path))
    with ExitStack() as stack:
        stack.callback(health.close)
        for number in range(50):
            address = ("127.0.0.1", health.address[1])
            client = stack.enter_context(socket.create_connection(address))
            client.sendall(b"GET /healthz" if number % 2 else b"G")

        began = time.monotonic()
        assert answer(health) == (200, "ok\n")

        assert time.monotonic() - began < longer_if_busy(3)
