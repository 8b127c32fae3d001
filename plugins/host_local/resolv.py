"""resolv.conf as the `dns` part of a result."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from typing import Any

BYTES_MAX = 1 << 20  # far beyond what a resolver reads

_LISTS = {"nameserver": "nameservers", "search": "search", "options": "options"}


def read(path: str) -> dict[str, Any]:
    """Return the `dns` of the file at `path`, at most BYTES_MAX long. Raises CNIError 7."""
    try:
        # Not blocking: a FIFO would block the ADD for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("not a regular file")
            data = os.read(fd, BYTES_MAX + 1)
        finally:
            os.close(fd)
        if len(data) > BYTES_MAX:
            raise ValueError(f"larger than {BYTES_MAX} bytes")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CNIError(
            Code.INVALID_CONFIG, f'ipam.resolvConf: cannot read "{path}": {reason}'
        ) from None
    return parse(data.decode("utf-8", "replace"))


def parse(text: str) -> dict[str, Any]:
    """Return the `dns` of resolv.conf's `text`; unknown and incomplete lines are skipped.

    Of several `domain` lines the last counts; several `search` and `options` lines are joined,
    unlike in resolv.conf(5) of glibc. A nameserver is not checked.
    """
    found: dict[str, Any] = {"nameservers": [], "domain": "", "search": [], "options": []}
    for line in text.split("\n"):
        keyword, *values = line.split() or [""]
        if not values or keyword[0] in "#;":
            continue
        if keyword == "domain":
            found["domain"] = values[0]
        elif keyword in _LISTS:
            found[_LISTS[keyword]] += values[:1] if keyword == "nameserver" else values
    return {key: value for key, value in found.items() if value}
