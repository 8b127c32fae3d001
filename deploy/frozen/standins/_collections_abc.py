"""The part of `_collections_abc` that os.environ needs: two of 25 classes, without their ABCs."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import ItemsView, Iterator, KeysView, ValuesView


class Mapping:
    """The methods of a mapping that come from __getitem__, __iter__ and __len__."""

    def __getitem__(self, key: str) -> str:
        raise KeyError

    def __iter__(self) -> "Iterator[str]":
        return iter(())

    def get(self, key: str, default: "str | None" = None) -> "str | None":
        """Return the value, or `default`."""
        try:
            return self[key]
        except KeyError:
            return default

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]
        except KeyError:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        copy: bool = dict(self.items()) == other
        return copy

    __hash__ = None  # type: ignore[assignment]

    def keys(self) -> "KeysView[str]":
        """Return the keys of this moment."""
        return dict.fromkeys(self).keys()

    def items(self) -> "ItemsView[str, str]":
        """Return the pairs of this moment."""
        return {key: self[key] for key in self}.items()

    def values(self) -> "ValuesView[str]":
        """Return the values of this moment."""
        return {key: self[key] for key in self}.values()


class MutableMapping(Mapping):
    """The methods that come from __setitem__ and __delitem__ as well."""

    _none = object()

    def __setitem__(self, key: str, value: str) -> None:
        raise KeyError

    def __delitem__(self, key: str) -> None:
        raise KeyError

    def pop(self, key: str, default: object = _none) -> object:
        """Remove a key and return its value, or `default`. Raises KeyError if there is neither."""
        try:
            value = self[key]
        except KeyError:
            if default is self._none:
                raise
            return default
        del self[key]
        return value

    def popitem(self) -> tuple[str, str]:
        """Remove and return a pair. Raises KeyError if there is none."""
        for key in self:
            return key, str(self.pop(key))
        raise KeyError

    def clear(self) -> None:
        """Remove all keys."""
        for key in list(self):
            del self[key]

    def update(self, other: "Mapping | dict[str, str]" = {}, /, **others: str) -> None:  # noqa: B006
        """Set many."""
        for key, value in (*dict(other).items(), *others.items()):
            self[key] = value


def _check_methods(kind: type, *methods: str) -> object:
    """Tell whether a class has all methods, as __subclasshook__ does."""
    for method in methods:
        for one in kind.__mro__:
            if method in one.__dict__:
                if one.__dict__[method] is None:
                    return NotImplemented
                break
        else:
            return NotImplemented
    return True
