"""Finds the host's interface that the configuration means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code, listed
from plugins.host_device import link as links
from plugins.host_device import sysfs
from plugins.host_device.parts import holder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cni_common.node.host import Host
    from plugins.host_device.conf import Conf
    from plugins.host_device.facts import MovedFacts
    from plugins.host_device.link import Device

_LOOPBACK = 1  # the index of every namespace's lo


def find(host: Host, conf: Conf, pci: str) -> Device:
    """Return the device on the host; `pci` is the PCI address that `sysfs.pci_address` has.

    Raises CNIError 50 if there is none, 11 if a container has it, 7 if the MAC does not tell which.
    """
    if conf.device:
        return _named(host, conf.device, f"interface '{conf.device}'", _by_name(conf.device))
    if conf.mac:
        return _with_mac(host, conf.mac)
    try:
        name = sysfs.interface_of(conf, pci)
    except CNIError:
        wanted = pci or conf.device_id
        _refuse_held(host, f"device '{wanted}'", lambda facts: wanted == facts.pci)
        raise
    return _named(host, name, f"interface '{name}' of {_place(conf, pci)}", _by_name(name))


def _place(conf: Conf, pci: str) -> str:
    return f"'{conf.kernel_path or pci or conf.device_id}'"


def _by_name(name: str) -> Callable[[MovedFacts], bool]:
    return lambda facts: facts.name == name


def _named(host: Host, name: str, what: str, is_it: Callable[[MovedFacts], bool]) -> Device:
    device = links.named(host.netns, name)
    if device is None:
        _refuse_held(host, what, is_it)
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"there is no {what} in '{host.netns.path}': correct the configuration, or bring the"
            " device back",
        )
    if device.link.index == _LOOPBACK:
        raise CNIError(Code.INVALID_CONFIG, f"'{name}' is every namespace's own and cannot move")
    return device


def _with_mac(host: Host, mac: str) -> Device:
    """Return the interface with this MAC: hardware before all that only borrows its MAC."""
    found = [one for one in links.all_of(host.netns) if one.link.mac == mac]
    hardware = [one for one in found if not one.link.kind and one.link.index != _LOOPBACK]
    chosen = hardware or _lowest([one for one in found if one.link.kind])
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        names = listed(sorted(f"'{one.link.name}'" for one in chosen))
        raise CNIError(
            Code.INVALID_CONFIG,
            f'"hwaddr" does not tell which device it is: {names} have the MAC {mac}; set "device"',
        )
    _refuse_held(host, f"the interface with the MAC {mac}", lambda facts: facts.mac == mac)
    raise CNIError(
        Code.PLUGIN_NOT_AVAILABLE,
        f"there is no interface with the MAC {mac} in '{host.netns.path}': correct \"hwaddr\", or"
        " bring the device back",
    )


def _lowest(devices: Sequence[Device]) -> list[Device]:
    """Return the devices that are neither on top of another one of them nor its master."""
    indices = {one.link.index for one in devices}
    masters = {one.link.master for one in devices}
    return [
        one
        for one in devices
        if one.link.index not in masters
        and (one.link.peer_nsid is not None or one.link.peer not in indices)
    ]


def _refuse_held(host: Host, what: str, is_it: Callable[[MovedFacts], bool]) -> None:
    """Raise CNIError 11 if a container has the device."""
    container = holder(host, is_it)
    if container:
        raise CNIError(Code.TRY_AGAIN_LATER, f"{what} is in use: container {container} has it")
