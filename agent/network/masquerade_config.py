"""The file of ranges that are not masqueraded, in the format of ip-masq-agent.

Its keys are nonMasqueradeCIDRs, masqLinkLocal, masqLinkLocalIPv6 and resyncInterval, in JSON or
YAML. Unlike there, a file without nonMasqueradeCIDRs adds no private ranges of its own.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from agent.cluster import Network

_BYTES_MAX = 1 << 16
_CIDRS_MAX = 4096
RESYNC_SECONDS = 60.0  # between looks at the file, as ip-masq-agent has it
_RESYNC_RANGE = (1.0, 86_400.0)  # seconds
_UNITS = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|\u00b5s|ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class Masquerading:
    """The content of the file, or the defaults."""

    unmasqueraded: tuple[Network, ...] = ()
    link_local: bool = False  # whether packets to 169.254.0.0/16 are masqueraded
    link_local6: bool = False  # whether packets to fe80::/10 are
    resync_seconds: float = RESYNC_SECONDS


def load(path: str) -> Masquerading:
    """Return what the file at `path` says, the defaults if there is none.

    Raises OSError, and ValueError with words for a file that is not of the format.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_BYTES_MAX + 1)
    except FileNotFoundError:
        return Masquerading()
    if len(data) > _BYTES_MAX:
        raise ValueError(f"it has more than {_BYTES_MAX} bytes")
    return parse(data.decode("utf-8", "strict"))


def stamp(path: str) -> tuple[int, int, int]:
    """Return what changes with the file: inode, time and size; zeros if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_mtime_ns, status.st_size


def parse(text: str) -> Masquerading:
    """Return what a text of the format says. Raises ValueError."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise ValueError(f"it is neither YAML nor JSON: {words}") from None
    if content is None:
        return Masquerading()
    if not isinstance(content, dict):
        raise ValueError("it must be an object with keys such as nonMasqueradeCIDRs")
    return Masquerading(
        _networks(content.get("nonMasqueradeCIDRs")),
        _flag(content, "masqLinkLocal"),
        _flag(content, "masqLinkLocalIPv6"),
        _seconds(content.get("resyncInterval")),
    )


def _networks(value: Any) -> tuple[Network, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _CIDRS_MAX:
        raise ValueError(f"nonMasqueradeCIDRs must be a list of at most {_CIDRS_MAX} CIDRs")
    found = []
    for one in value:
        if not isinstance(one, str):
            raise ValueError(f"nonMasqueradeCIDRs has {one!r}, which is no CIDR")
        try:
            found.append(ip_network(one))
        except ValueError as error:
            raise ValueError(f"nonMasqueradeCIDRs: {error}") from None
    return tuple(found)


def _flag(content: dict[str, Any], key: str) -> bool:
    value = content.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, it is {value!r}")
    return value


def _seconds(value: Any) -> float:
    """Return a duration of Go, such as "1m30s", in seconds, within reason."""
    if value is None:
        return RESYNC_SECONDS
    parts = _DURATION.findall(value) if isinstance(value, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise ValueError(f'resyncInterval must be like "60s" or "1m30s", it is {value!r}')
    low, high = _RESYNC_RANGE
    return min(max(sum(float(number) * _UNITS[unit] for number, unit in parts), low), high)
