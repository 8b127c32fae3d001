"""The kernel's objects at this moment, read by pyroute2, as dataclasses.

pyroute2's sockets and high-level interfaces spare decoders of our own where a quarter of a second
for the import does not matter; a plugin never loads them. Such a socket belongs to the thread and
to the network namespace in which it was opened: each reader opens, uses and closes its own, so it
is called inside the namespace, by a thread of `NetNS.run`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


def read_or(default: T, read: Callable[[], T], complain: Callable[[str], object]) -> T:
    """Return what `read` does; `default` where it fails, as without a kernel module.

    Then `complain` gets the reason, in words.
    """
    prepare()
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        return read()
    except (OSError, NetlinkError, CNIError) as error:
        complain(str(error.args[-1]) if error.args else type(error).__name__)
        return default


def prepare() -> None:
    """Let pyroute2 be imported where there is no `ssl`, as in the bundle.

    pyroute2 needs it only to probe TLS servers. asyncio does without it, so asyncio comes first.
    """
    import asyncio  # noqa: F401 - see above
    from importlib.util import find_spec

    if "ssl" not in sys.modules and find_spec("ssl") is None:
        sys.modules["ssl"] = ModuleType("ssl")
