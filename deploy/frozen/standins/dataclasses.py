"""The rest of `dataclasses` once deploy/frozen/rewrite.py has written their methods."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class FrozenInstanceError(AttributeError):
    """A field of a frozen dataclass was to be changed."""


def replace(original: "Any", /, **changes: object) -> object:
    """Return a copy with some fields changed."""
    for name in original.__match_args__:
        if name not in changes:
            changes[name] = getattr(original, name)
    return original.__class__(**changes)
