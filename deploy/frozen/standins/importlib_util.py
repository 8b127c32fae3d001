"""For cni_common/kernel/codec.py: pyroute2 is an empty package in the bundle."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def find_spec(name: str) -> str:
    """Return what module_from_spec takes."""
    return name


def module_from_spec(name: str) -> "ModuleType":
    """Return the empty package."""
    __import__(name)
    return sys.modules[name]
