"""Have a chosen system call of a real program fail, or its process killed just before it."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("inject.c")
_PLAN = struct.Struct("<6I232s")  # struct plan of inject.c
_COUNT, _KILL, _FAIL, _LIST = range(4)  # enum action


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault at call number `at`, counted from 1: an error, or death where there is none.

    With 0 nothing happens, and the injector writes all calls down.
    """

    at: int
    error: int = 0  # errno; 0: SIGKILL
    lasting: bool = False  # every later call fails too

    def __str__(self) -> str:
        if not self.at:
            return "no fault"
        kind = errno.errorcode[self.error] if self.error else "SIGKILL"
        return f"{kind} at call {self.at}{' and all later ones' if self.lasting else ''}"


class Injector:
    """The program inject.c with its plan, which `arm` changes while it runs."""

    def __init__(self, directory: Path, *, spared: bool = False) -> None:
        """The plan becomes a file in `directory`, which the command's side must see too.

        `spared`: the command itself is left alone, as the engine's supervisor, what it starts
        is not.
        """
        self._plan = directory / "plan"
        self._list = directory / "plan.calls"
        self._spared = int(spared)
        self.disarm()

    def command(self, *words: str | Path) -> list[str | Path]:
        """Return what runs `words` under the injector."""
        return [_program(), self._plan, *words]

    def arm(self, injection: Injection) -> None:
        """Begin to count anew, and do this at its call."""
        self._list.write_bytes(b"")
        action = (_FAIL if injection.error else _KILL) if injection.at else _LIST
        self._write(injection.at, action, injection.error, int(injection.lasting))

    def disarm(self) -> None:
        """Begin to count anew, and do nothing."""
        self._write(0, _COUNT, 0, 0)

    @property
    def count(self) -> int:
        """How many calls there were since."""
        return int(self._read()[5])

    @property
    def what(self) -> str:
        """The call that was chosen: its name and of what file."""
        return bytes(self._read()[6]).partition(b"\0")[0].decode("utf-8", "replace")

    @property
    def calls(self) -> list[str]:
        """All calls since the injection number 0: each one's name and the file it is about."""
        return self._list.read_text("utf-8", "replace").splitlines()

    def _read(self) -> tuple[int, int, int, int, int, int, bytes]:
        fields: tuple[int, int, int, int, int, int, bytes] = _PLAN.unpack(self._plan.read_bytes())
        return fields

    def _write(self, *fields: int) -> None:
        # In place and at once: the program has the file mapped.
        fd = os.open(self._plan, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, _PLAN.pack(*fields, self._spared, 0, b""), 0)
        finally:
            os.close(fd)


@cache
def _program() -> Path:
    program = Path(tempfile.mkdtemp(prefix="pycni-inject-")) / "inject"
    words: list[str | Path] = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE]
    subprocess.run(words, check=True, timeout=60)
    return program
