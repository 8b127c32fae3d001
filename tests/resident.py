"""Commands in network namespaces: started there, or resident there to answer many questions."""

from __future__ import annotations

import ctypes
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

CLONE_NEWNET = 0x40000000
_HOME = "/proc/thread-self/ns/net"
_SECONDS = 60.0  # between the parts of one answer

_setns = ctypes.CDLL(None, use_errno=True).setns


@contextmanager
def visiting(netns: str) -> Iterator[None]:
    """Have this thread be in a network namespace. Raises OSError where it cannot."""
    home = os.open(_HOME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(netns)
        yield
    finally:
        assert _setns(home, CLONE_NEWNET) == 0, "the thread does not get home again"
        os.close(home)


def _enter(netns: str) -> None:
    there = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _setns(there, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), netns)
    finally:
        os.close(there)


def start_in(netns: str, *words: str, **keys: Any) -> subprocess.Popen[Any]:
    """Start a command inside a network namespace, with the keywords of subprocess.Popen.

    It is there from its first moment on, and needs no `nsenter` before it.
    """
    with visiting(netns):
        return subprocess.Popen(words, **keys)


class Resident:
    """A command in a namespace that prints a line of JSON for each line that it reads.

    The namespace lives as long as it does.
    """

    def __init__(self, netns: str, *words: str) -> None:
        """The command starts with the first question, and again after one that it died of."""
        self._netns, self._words = netns, words
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()
        self._owner = os.getpid()

    def ask(self, question: str) -> str | None:
        """Return the answer to a question, None where it gives none that is JSON."""
        if os.getpid() != self._owner:  # a test has forked: the pipes are the parent's
            return None
        with self._lock:
            answer = self._answer(question)
            if not answer.startswith(("[", "{")):
                self._end()
                return None
            return answer

    def close(self) -> None:
        """End the command."""
        if os.getpid() == self._owner:
            with self._lock:
                self._end()

    def _answer(self, question: str) -> str:
        """Return what is printed until the end of a line; less, when no more comes."""
        if self._process is None:
            pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
            self._process = start_in(
                self._netns, *self._words, stderr=subprocess.STDOUT, bufsize=0, **pipes
            )
        process, answer = self._process, b""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{question}\n".encode())
        except BrokenPipeError:
            return ""
        waiting = select.poll()
        waiting.register(process.stdout, select.POLLIN)
        while not answer.endswith(b"\n") and waiting.poll(_SECONDS * 1000):
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                break
            answer += part
        return answer.decode()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
