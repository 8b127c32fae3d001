"""The host-device plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.ipam_config import ipam_schema, ipam_type, own_dns
from cni_common.spec.names import is_whole
from cni_common.spec.request import PROTOCOL_PROPERTIES
from cni_common.spec.schema import key_schema

if TYPE_CHECKING:
    from typing import Self

    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

_ALTERNATIVE_NAME_BYTES = 127  # ALTIFNAMSIZ of linux/if.h, less its terminating NUL
_MAC_BYTES = (6, 8, 20)  # Ethernet, EUI-64, InfiniBand, as Go's net.ParseMAC
_HEX = frozenset("0123456789abcdefABCDEF")
_DEVICES = "/sys/devices/"

SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        "device": key_schema("string", "Name of the host's interface, or an alternative name."),
        "hwaddr": key_schema("string", "MAC of the host's interface."),
        "kernelpath": key_schema("string", "Directory of the device below /sys/devices."),
        "pciBusID": key_schema("string", "PCI address of the device, such as 0000:00:1f.6."),
        "DPDKMode": key_schema(
            "boolean", "Move no interface; a PCI device tells by its driver whether to."
        ),
        "runtimeConfig": {
            "type": "object",
            "description": "Values from the runtime, by capability.",
            "properties": {
                "deviceID": key_schema(
                    "string", "PCI address or name of an auxiliary device, by `deviceID`."
                )
            },
        },
        "ipam": ipam_schema("Address management; absent or empty: the network is L2 only."),
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent. Of the ways to the device the first counts."""

    device: str  # name of the host's interface
    mac: str  # colon form
    kernel_path: str  # directory below /sys/devices
    pci: str  # address of a PCI device
    device_id: str  # of the runtime: a PCI address or an auxiliary device; replaces `pci`
    dpdk: bool  # where no PCI device tells it: whether no interface is moved
    ipam: str  # type of the IPAM plugin, "" = L2 only
    dns: Json | None  # replaces the DNS settings of IPAM; None = keeps them

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7."""
        config = req.config
        device = config.get("device", "")
        _refuse_odd_name(device)
        pci = config.get("pciBusID", "")
        device_id = config.get("runtimeConfig", {}).get("deviceID", "")
        for key, value in (("pciBusID", pci), ("runtimeConfig.deviceID", device_id)):
            if value in (".", "..") or "/" in value or not is_whole(value):
                raise CNIError(Code.INVALID_CONFIG, f'"{key}" is {value!r}, no name of a device')
        return cls(
            device=device,
            mac=_hardware_address(config.get("hwaddr", "")),
            kernel_path=_kernel_path(config.get("kernelpath", "")),
            pci=pci,
            device_id=device_id,
            dpdk=config.get("DPDKMode", False),
            ipam=ipam_type(config),
            dns=own_dns(config),
        )

    @property
    def names_device(self) -> bool:
        """Whether the configuration names a device."""
        return any((self.device, self.mac, self.kernel_path, self.pci, self.device_id))

    def refuse_nothing(self) -> None:
        """Raise CNIError 7 if the configuration names no device."""
        if not self.names_device:
            raise CNIError(
                Code.INVALID_CONFIG,
                'specify either "device", "hwaddr", "kernelpath" or "pciBusID", or have the runtime'
                ' give runtimeConfig.deviceID by {"capabilities": {"deviceID": true}}',
            )


def _refuse_odd_name(name: str) -> None:
    """Raise CNIError 7 if no interface can have the name, not even as an alternative one."""
    size = len(name.encode("utf-8", "surrogateescape"))
    if size > _ALTERNATIVE_NAME_BYTES:
        raise CNIError(
            Code.INVALID_CONFIG, f'"device" has {size} bytes, and at most {_ALTERNATIVE_NAME_BYTES}'
        )
    if name in (".", "..") or not is_whole(name) or any(c in "/%" or c.isspace() for c in name):
        raise CNIError(Code.INVALID_CONFIG, f'"device" is {name!r}, no name of an interface')


def _hardware_address(text: str) -> str:
    """Return a MAC in colon form, "" for none. Raises CNIError 7."""
    if not text:
        return ""
    for mark, width in ((":", 2), ("-", 2), (".", 4)):
        groups = text.split(mark)
        digits = "".join(groups)
        whole = len(digits) // 2 in _MAC_BYTES and _HEX.issuperset(digits)
        if whole and all(len(group) == width for group in groups):
            return bytes.fromhex(digits).hex(":")
    raise CNIError(Code.INVALID_CONFIG, f'"hwaddr" is {text!r}, no MAC such as 02:11:22:33:44:55')


def _kernel_path(path: str) -> str:
    if path and (not path.startswith(_DEVICES) or ".." in path.split("/") or not is_whole(path)):
        raise CNIError(
            Code.INVALID_CONFIG,
            f'"kernelpath" is {path!r}: it must be absolute and begin with {_DEVICES}',
        )
    return path
