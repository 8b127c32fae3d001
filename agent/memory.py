"""Memory of the C library: given back to the node once a list has been read."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h


def use_one_arena() -> None:
    """Have all threads share one arena: each of its own would keep what its thread once needed.

    A C library other than glibc has no arenas.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def trim() -> None:
    """Give free memory back to the kernel, which glibc keeps (malloc_trim(3))."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
