"""The protocols' counters of a namespace that tell of trouble, from /proc/net."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cni_common.kernel.netns import NetNS

_FILES = ("snmp", "netstat", "snmp6")
# A counter that is no error by itself does not belong here: one that is not zero is shown.
_OF_IP = ("InHdrErrors", "InAddrErrors", "InDiscards", "OutDiscards", "OutNoRoutes", "ReasmFails")
_OF_UDP = ("NoPorts", "InErrors", "RcvbufErrors", "SndbufErrors", "InCsumErrors", "MemErrors")
_ERRORS = {
    "Ip": (*_OF_IP, "FragFails"),
    "Ip6": (*_OF_IP, "FragFails", "InNoRoutes", "InTooBigErrors"),
    "Tcp": ("AttemptFails", "EstabResets", "RetransSegs", "InErrs", "InCsumErrors"),
    "Udp": _OF_UDP,
    "Udp6": _OF_UDP,
    "TcpExt": (
        *("ListenOverflows", "ListenDrops", "TCPBacklogDrop", "TCPReqQFullDrop", "TCPRcvQDrop"),
        *("TCPTimeouts", "TCPSynRetrans", "TCPLostRetransmit", "TCPSpuriousRTOs"),
        *("TCPAbortOnTimeout", "TCPAbortOnMemory", "TCPMemoryPressures", "TCPZeroWindowDrop"),
        *("PruneCalled", "RcvPruned", "OfoPruned"),
    ),
}


def errors(netns: NetNS) -> dict[str, int]:
    """Return those of the counters that are not zero: {"TcpExt.ListenDrops": 3}. Raises OSError."""
    found: dict[str, int] = {}
    for name in _FILES:
        path = f"/proc/thread-self/net/{name}"
        try:
            fd = netns.open_file(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # snmp6, without IPv6
        with open(fd, encoding="ascii") as file:
            found |= _parsed(file.read())
    return {
        f"{group}.{name}": found[f"{group}.{name}"]
        for group, names in _ERRORS.items()
        for name in names
        if found.get(f"{group}.{name}")
    }


def _parsed(text: str) -> dict[str, int]:
    lines = [line.split() for line in text.splitlines()]
    if lines and not lines[0][0].endswith(":"):  # snmp6: a counter in each line
        groups = ("Udp6", "Ip6")
        return {
            f"{group}.{name.removeprefix(group)}": int(value)
            for name, value in lines
            for group in groups
            if name.startswith(group)
        }
    return {  # a line of names, then one of values
        f"{names[0][:-1]}.{name}": int(value)
        for names, values in zip(lines[::2], lines[1::2], strict=True)
        for name, value in zip(names[1:], values[1:], strict=True)
    }
