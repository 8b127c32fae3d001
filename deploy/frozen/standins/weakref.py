"""weakref, as far as it is C."""

from _weakref import proxy, ref

__all__ = ["proxy", "ref"]
