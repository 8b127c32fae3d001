"""The registry of plugins: a plugin is a module here, and a line in TYPES."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cni_common.node.host import Plugin
    from cni_common.spec.profile import Profile

_FOR_COMMANDS = "profile"  # a plugin's module that no plugin loads
TYPES = (
    "bandwidth",
    "bridge",
    "dhcp",
    "dummy",
    "firewall",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
)


def load(type: str) -> Plugin | None:
    """Return the module of the plugin `type`, or None when it is not ours."""
    if type not in TYPES:
        return None
    name = f"{__name__}.{type.replace('-', '_')}"
    __import__(name)  # what importlib adds to this would have to be loaded first
    module: Any = sys.modules[name]  # mypy compares each with Plugin: tests/conformance.py
    found: Plugin = module
    return found


def profile_of(type: str) -> Profile | None:
    """Return what the plugin `type` says of its configurations, or None when it is not ours."""
    plugin: Any = load(type)
    if plugin is None:
        return None
    name = f"{plugin.__name__}.{_FOR_COMMANDS}"
    __import__(name)
    module: Any = sys.modules[name]
    found: Profile = module.PROFILE
    return found


def load_all() -> None:
    """Import every plugin, and all that their functions import when it is needed.

    For a process that stays: an upgrade may take the files away.
    """
    for name in _modules():
        if not name.startswith(("cni_common.serve", f"{__name__}.__main__")) and not name.endswith(
            f".{_FOR_COMMANDS}"
        ):
            __import__(name)


def _modules() -> Iterator[str]:
    """Yield the names of all modules of the plugins and of what they share."""
    packages = (__name__, "cni_common")
    for finder in sys.meta_path:
        if hasattr(finder, "names"):  # the bundle's, in which there are no files
            yield from (name for name in finder.names() if name.partition(".")[0] in packages)
            return
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for package in packages:
        for directory, _, files in os.walk(os.path.join(root, package)):
            parts = os.path.relpath(directory, root).split(os.sep)
            for file in files:
                if file.endswith(".py"):
                    yield ".".join([*parts, file.removesuffix(".py")]).removesuffix(".__init__")
