"""The rest of `dataclasses` once deploy/frozen/rewrite.py has written their methods."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


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
