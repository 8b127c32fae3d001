"""The rest of `dataclasses` once deploy/frozen/rewrite.py has written their methods."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


class FrozenInstanceError(AttributeError):
    """A field of a frozen dataclass was to be changed."""


def replace(original: "Any", /, **changes: object) -> object:
    """Return a copy with some fields changed."""
    for name in original.__match_args__:
        if name not in changes:
            changes[name] = getattr(original, name)
    return original.__class__(**changes)


def show_fields(self: "Any") -> str:
    """Return what `repr` says of a dataclass."""
    text = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__dataclass_fields__)
    return f"{self.__class__.__qualname__}({text})"


def refuse_assignment(_self: object, name: str, _value: object) -> "NoReturn":
    """Raise FrozenInstanceError in place of a change."""
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def refuse_deletion(_self: object, name: str) -> "NoReturn":
    """Raise FrozenInstanceError in place of a deletion."""
    raise FrozenInstanceError(f"cannot delete field {name!r}")
