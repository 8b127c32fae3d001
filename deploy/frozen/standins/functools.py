"""functools by its part in C: the rest of it needs collections, and both take 2 ms."""

from _functools import _lru_cache_wrapper, partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["cache", "cached_property", "lru_cache", "partial", "total_ordering"]


class cached_property:  # noqa: N801 - as the module calls it
    """A property that is computed once."""

    def __init__(self, function: "Callable[[Any], Any]") -> None:
        self._function = function

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, _owner: type | None = None) -> "Any":
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._function(instance)
        return value


def cache(function: "Callable[..., Any]") -> "Any":
    """Keep what `function` returns, by its arguments."""
    return lru_cache(None)(function)


def lru_cache(maxsize: int | None = 128) -> "Any":
    """Keep the last results of a function, by its arguments."""
    return lambda function: _lru_cache_wrapper(function, maxsize, False, _cache_info)  # noqa: FBT003


def _cache_info(*numbers: int) -> tuple[int, ...]:
    return numbers


def total_ordering(cls: "Any") -> "Any":
    """Give a class with __lt__ and __eq__ the other comparisons."""

    def compare(decide: "Callable[[Any, Any, bool], bool]") -> "Callable[[Any, Any], Any]":
        def method(self: "Any", other: "Any") -> "Any":
            less = type(self).__lt__(self, other)
            return less if less is NotImplemented else decide(self, other, less)

        return method

    cls.__gt__ = compare(lambda self, other, less: not less and self != other)
    cls.__le__ = compare(lambda self, other, less: less or self == other)
    cls.__ge__ = compare(lambda _self, _other, less: not less)
    return cls
