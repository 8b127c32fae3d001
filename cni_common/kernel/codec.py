"""pyroute2's message classes, for what is rare: nftables' rules and sets, routes read by CHECK.

Its sockets stay out, because they start an event loop, cost ten times as much per request, and
open a socket per thread wherever that thread is. No other file knows pyroute2, and an ADD on a
node that has its bridge and its nftables table loads it not at all: it takes 20 ms.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _enter_pyroute2_quietly() -> None:
    """Make pyroute2's submodules importable without running its __init__ and 370 modules.

    Nothing in this process may import pyroute2 for real afterwards; the version is pinned.
    """
    from importlib.util import find_spec, module_from_spec

    spec = find_spec("pyroute2")
    if spec is None:
        raise ImportError("pyroute2 is not installed")
    sys.modules.setdefault("pyroute2", module_from_spec(spec))


_enter_pyroute2_quietly()
from pyroute2.netlink import nla, nlmsg  # noqa: E402, TID253 - after the line above
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # noqa: E402, TID253 - as above

__all__ = ["decoder", "encode", "nla", "nlmsg", "rtmsg"]


def encode(body: nlmsg) -> bytes:
    """Return the bytes of a message without struct nlmsghdr."""
    body.encode()
    return bytes(body.data[HEADER_SIZE:])


def decoder(kind: type[nlmsg]) -> Callable[[bytes], Any]:
    """Return the function that decodes an answer of this class."""

    def decode(data: bytes) -> Any:
        answer = kind(data)
        answer.decode()
        return answer

    return decode
