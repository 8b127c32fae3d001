"""The leases of host-local in one network: files with the names of their addresses."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.cluster import Address

DIRECTORY = "/var/lib/cni/networks"  # has a directory for each network
_FILES_MAX = 1 << 16  # looked at; a /16 full of pods


def leased(directory: Path) -> Iterator[Address]:
    """Yield the addresses that have a lease; none if there is no such directory.

    Raises OSError where the directory cannot be read: then nothing is known.
    """
    try:
        names = [path.name for path in islice(directory.iterdir(), _FILES_MAX)]
    except FileNotFoundError:
        return
    for name in names:
        try:
            yield ip_address(name)
        except ValueError:
            continue  # host-local's lock, and the last address that was given out
