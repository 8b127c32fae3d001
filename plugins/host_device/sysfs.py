"""Devices in sysfs: the interface of a device, and the driver of a PCI device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from plugins.host_device.conf import Conf

_PCI, _AUXILIARY = "/sys/bus/pci/devices", "/sys/bus/auxiliary/devices"
_OF_USER_SPACE = ("vfio-pci", "uio_pci_generic", "igb_uio")  # drivers that make no interface


def pci_address(conf: Conf) -> str:
    """Return the PCI address of the device, "" if it is found in another way.

    Raises CNIError 50 if the runtime has named a device that is not there.
    """
    if not conf.device_id:
        return conf.pci
    if os.path.exists(f"{_PCI}/{conf.device_id}"):
        return conf.device_id
    if os.path.exists(f"{_AUXILIARY}/{conf.device_id}"):
        return ""
    raise CNIError(
        Code.PLUGIN_NOT_AVAILABLE,
        f"runtimeConfig.deviceID is '{conf.device_id}', and there is neither a PCI device nor an"
        " auxiliary device of that name",
    )


def is_without_interface(conf: Conf, pci: str) -> bool:
    """Tell whether a driver of user space, as DPDK's, has the device. Raises CNIError 50."""
    if not pci:
        return conf.dpdk
    try:
        driver = os.readlink(f"{_PCI}/{pci}/driver")
    except OSError as error:
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"the PCI device '{pci}' has no driver ({error.strerror}): correct \"pciBusID\", or"
            " bind a driver to it",
        ) from None
    return os.path.basename(driver) in _OF_USER_SPACE


def interface_of(conf: Conf, pci: str) -> str:
    """Return the name of the interface of kernelpath, PCI or auxiliary device. CNIError 50."""
    if conf.kernel_path:
        return _first(f"{conf.kernel_path}/net")
    if not pci:
        return _first(f"{_AUXILIARY}/{conf.device_id}/net")
    where = f"{_PCI}/{pci}"
    if os.path.lexists(f"{where}/net"):
        return _first(f"{where}/net")
    virtio = sorted(name for name in _names(where) if name.startswith("virtio"))
    for name in virtio:
        if os.path.lexists(f"{where}/{name}/net"):
            return _first(f"{where}/{name}/net")
    return _first(f"{where}/net")  # to say that it is missing


def is_there(parent: str) -> bool:
    """Tell whether the device "BUS NAME" below an interface is still there."""
    bus, _, name = parent.partition(" ")
    return bool(name) and os.path.lexists(f"/sys/bus/{bus}/devices/{name}")


def _first(directory: str) -> str:
    names = _names(directory)
    if not names:
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"there is no interface in '{directory}': the device is not there, has no driver of the"
            " kernel, or is in use by a container",
        )
    return names[0]


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
