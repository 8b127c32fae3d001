"""PROFILE of host-device, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import INTERFACE, Advice, HostLink, Profile
from plugins.host_device.conf import Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    conf = Conf.of(req)
    if conf.device:
        yield HostLink(conf.device, ("device",))
    elif not conf.names_device and not req.config.get("capabilities", {}).get("deviceID"):
        yield Advice(
            "L404",
            (),
            'nothing says which device it is: set "device", "hwaddr", "kernelpath" or "pciBusID",'
            ' or have the runtime give it by "capabilities": {"deviceID": true}',
        )


# Packets go to the device's network, past the host's firewall.
PROFILE = Profile(INTERFACE, Conf.of, _facts, passes_host=False)
