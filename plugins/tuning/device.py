"""The interface: its settings, their changes, and the reference's file of former settings."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel.link import IFF_ALLMULTI, IFF_PROMISC
from cni_common.node.journal import make_directory
from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.ipam_config import parse_mac
from cni_common.spec.undo import BestEffort
from plugins.tuning.conf import Device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.spec.wire import Json

_BACKUP_BYTES_MAX = 65536
# The reference's names of settings.
_KEYS = {
    "mac": "mac",
    "promisc": "promisc",
    "mtu": "mtu",
    "allmulti": "allmulti",
    "tx_queue": "txQLen",
}


def required(container: NetNS, ifname: str) -> Link:
    """Return the interface. Raises CNIError if there is none."""
    link = container.netlink.link(ifname)
    if link is None:
        raise CNIError(Code.INTERNAL, f"interface '{ifname}' is missing in '{container.path}'")
    return link


def former(link: Link, wanted: Device) -> Device:
    """Return the current settings of `link` that differ from `wanted`."""
    now = Device(
        link.mac,
        bool(link.flags & IFF_PROMISC),
        link.mtu,
        bool(link.flags & IFF_ALLMULTI),
        link.tx_queue,
    )
    return Device(**{key: getattr(now, key) for key in _KEYS if getattr(wanted, key) is not None})


def apply(container: NetNS, link: Link, wanted: Device, steps: BestEffort | None = None) -> None:
    """Change an interface, one setting at a time; with `steps` try all. Raises NetlinkError.

    A setting that `link` has already is not set again: the kernel may refuse even that.
    """
    netlink, index, now = container.netlink, link.index, former(link, wanted)
    changes: dict[str, Callable[[Any], object]] = {
        "mtu": lambda mtu: netlink.set_mtu(index, mtu),
        "mac": lambda mac: netlink.set_mac(index, mac),
        "promisc": lambda on: netlink.set_flag(index, IFF_PROMISC, on=on),
        "allmulti": lambda on: netlink.set_flag(index, IFF_ALLMULTI, on=on),
        "tx_queue": lambda packets: netlink.set_tx_queue(index, packets),
    }
    for key, change in changes.items():
        value = getattr(wanted, key)
        if value is None or value == getattr(now, key):
            continue
        if steps:
            steps.attempt(_KEYS[key], partial(change, value))
        else:
            change(value)


def differences(link: Link, wanted: Device) -> Iterator[str]:
    """Yield each difference from `wanted`."""
    now = former(link, wanted)
    for key, name in _KEYS.items():
        found, due = getattr(now, key), getattr(wanted, key)
        if found != due:
            yield f"{name} of '{link.name}' is {found}, it should be {due}"


def as_json(device: Device) -> dict[str, Any]:
    """Return `device` with the reference's names."""
    values = {name: getattr(device, key) for key, name in _KEYS.items()}
    return {name: value for name, value in values.items() if value is not None}


def of_json(data: Json) -> Device:
    """Return the settings in `data`; invalid ones are ignored."""
    found: dict[str, Any] = {}
    for key, kind in (("promisc", bool), ("allmulti", bool), ("mtu", int), ("tx_queue", int)):
        value = data.get(_KEYS[key])
        if type(value) is kind and not (key == "mtu" and value <= 0):
            found[key] = value
    try:
        found["mac"] = parse_mac(str(data["mac"])) if data.get("mac") else None
    except ValueError:
        found["mac"] = None
    return Device(**found)


def save(path: str, device: Device) -> None:
    """Write the reference's file, so that its DEL can restore our changes. Raises OSError."""
    make_directory(os.path.dirname(path), 0o700)
    forget(path)  # the file of an earlier container with this id
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        data = wire.encode(as_json(device), sort_keys=False)
        if os.write(fd, data) != len(data):
            raise OSError(28, f"no space left for '{path}'")
    finally:
        os.close(fd)


def load(path: str) -> Device:
    """Return the settings in the reference's file, none if it is missing or invalid."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return Device()
    try:
        return of_json(wire.decode(os.read(fd, _BACKUP_BYTES_MAX)))
    except (OSError, CNIError):
        return Device()
    finally:
        os.close(fd)


def forget(path: str) -> None:
    """Remove the reference's file if it exists. Raises OSError."""
    try:
        os.unlink(path)
    except OSError as error:
        # No file can exist under a name that is too long, as that of a long container id is.
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
