"""The parts of platform that pyroute2 looks at."""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class _Uname:
    def __init__(self, fields: "Iterable[str]") -> None:
        self.system, self.node, self.release, self.version, self.machine = fields


def uname() -> _Uname:
    """Return what the kernel says of itself."""
    return _Uname(os.uname())


def machine() -> str:
    """Return the name of the processor's architecture."""
    return os.uname().machine


def architecture(executable: str = "") -> tuple[str, str]:
    """Return how this program is built."""
    return ("64bit" if sys.maxsize > 1 << 32 else "32bit", "ELF")
