"""Tap interfaces of the kernel's TUN driver (linux/if_tun.h, drivers/net/tun.c).

A tap lives as long as a descriptor of it, until TUNSETPERSIST: one that a killed ADD has made goes
by itself. While the descriptor is open, the interface has a carrier.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.link import mac_bytes
from cni_common.kernel.netlink import NetlinkError, number_of
from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from cni_common.kernel.netns import NetNS
    from plugins.tap.conf import Conf

KIND = "tun"  # of taps, too
PATH = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_TUNSETOWNER, _TUNSETGROUP = 0x400454CC, 0x400454CE
_IFF_TAP, _IFF_MULTI_QUEUE, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = (
    *(0x0002, 0x0100, 0x1000, 0x4000),
    0x8000,
)
_SIOCSIFHWADDR, _ARPHRD_ETHER = 0x8924, 1  # linux/sockios.h, linux/if_arp.h
# struct ifreq of linux/if.h: a name, then flags, or the family and bytes of an address
_FLAGS, _ADDRESS = struct.Struct("=16sH22x"), struct.Struct("=16sH6s16x")
_IFLA_TUN_OWNER, _IFLA_TUN_GROUP, _IFLA_TUN_MULTI_QUEUE = 1, 2, 7  # linux/if_link.h


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that a tap was made with; None: no owner, no group."""

    owner: int | None
    group: int | None
    multi_queue: bool


class Opened:
    """A descriptor on which a tap can be made in a namespace, -1 for none; closed at the end."""

    def __init__(self, netns: NetNS | None) -> None:
        """Open it. Raises CNIError 50 without the driver."""
        self._fd = -1 if netns is None else _open(netns)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _open(netns: NetNS) -> int:
    try:
        return netns.open_file(PATH, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM):
            raise
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"cannot open '{PATH}': {error.strerror}; load the module 'tun', and let root open the"
            " device",
        ) from None


def create(fd: int, name: str, mac: str, conf: Conf) -> None:
    """Make the tap, down, under its name, with its MAC, for its owner. Raises NetlinkError."""
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    if conf.multi_queue:
        flags |= _IFF_MULTI_QUEUE
    encoded = name.encode()
    _ioctl(fd, f"create tap '{name}'", _TUNSETIFF, _FLAGS.pack(encoded, flags))
    for what, request, value in (
        ("owner", _TUNSETOWNER, conf.owner),
        ("group", _TUNSETGROUP, conf.group),
    ):
        if value is not None:
            # The value itself is the argument, a signed one in Python.
            _ioctl(fd, f"set {what} {value} of tap '{name}'", request, _signed(value))
    address = _ADDRESS.pack(encoded, _ARPHRD_ETHER, mac_bytes(mac))
    _ioctl(fd, f"set MAC of tap '{name}'", _SIOCSIFHWADDR, address)


def keep(fd: int, name: str) -> None:
    """Have the tap outlive its descriptor. Raises NetlinkError."""
    _ioctl(fd, f"keep tap '{name}'", _TUNSETPERSIST, 1)


def settings(netns: NetNS, index: int) -> Settings:
    """Return what a tap was made with. Raises NetlinkError."""
    found = netns.netlink.info(index)
    owner, group = (
        number_of(found[kind]) if kind in found else None
        for kind in (_IFLA_TUN_OWNER, _IFLA_TUN_GROUP)
    )
    return Settings(owner, group, bool(number_of(found.get(_IFLA_TUN_MULTI_QUEUE))))


def _signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


def _ioctl(fd: int, what: str, request: int, argument: bytes | int) -> None:
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise NetlinkError(error.errno or 0, f"{what}: {error.strerror}") from None
