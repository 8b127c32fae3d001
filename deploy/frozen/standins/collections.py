"""collections, as far as it is C."""

from _collections import OrderedDict

__all__ = ["OrderedDict"]
