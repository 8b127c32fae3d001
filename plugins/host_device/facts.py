"""The facts in a record about a device that is lent to a container."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class MovedFacts:
    """A device of the host that is in the container, and what it had on the host.

    While it is away its alias is its name on the host, as the reference has it.
    """

    PART = "moved-device"
    name: str = ""  # on the host; "" without an interface (DPDK)
    pci: str = ""  # PCI address or auxiliary device by which it was found
    kind: str = ""  # as `ip -d link` has it, "" for hardware
    parent: str = ""  # bus and name of the device below: "pci 0000:00:03.0"
    permanent_mac: str = ""
    index: int = 0  # in the container's namespace, 0: not moved yet
    home_index: int = 0  # on the host
    alias: str = ""
    mac: str = ""
    mtu: int = 0  # bytes
    tx_queue: int = 0  # packets
    flags: int = 0  # IFF_*
    master: str = ""  # of which it was a port
    addresses: Sequence[Sequence[str]] = ()  # each in words, and the kernel's message in hex
    routes: Sequence[Sequence[str]] = ()  # likewise
    home: bool = False  # whether it is back, with everything
    failed: bool = False  # whether it is back, and a call could not give it everything
