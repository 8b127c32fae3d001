"""The ptp plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.node.masquerade import BACKENDS
from cni_common.node.veth import veth_mtu
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.ipam_config import ipam_schema, ipam_type, own_dns
from cni_common.spec.request import PROTOCOL_PROPERTIES

if TYPE_CHECKING:
    from typing import Self

    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        "ipMasq": {
            "type": "boolean",
            "description": "Masquerade traffic that leaves the network.",
        },
        "ipMasqBackend": {
            "type": "string",
            "enum": list(BACKENDS),
            "description": 'Masquerade backend; "nftables" if absent.',
        },
        "mtu": {
            "type": "integer",
            "description": "MTU of the veth pair in bytes; 0: the kernel's choice.",
        },
        "ipam": ipam_schema("Address management; it must name a plugin."),
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    masquerade: str  # the backend, "" = none
    mtu: int  # bytes, 0 = the kernel's default
    ipam: str  # type of the IPAM plugin
    dns: Json | None  # replaces the DNS settings of IPAM; None = keeps them

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7."""
        config = req.config
        if not ipam_type(config):
            raise CNIError(
                Code.INVALID_CONFIG, 'no plugin name provided: "ipam" must name an IPAM plugin'
            )
        return cls(
            masquerade=config.get("ipMasqBackend", BACKENDS[0]) if config.get("ipMasq") else "",
            mtu=veth_mtu(config.get("mtu", 0)),
            ipam=ipam_type(config),
            dns=own_dns(config),
        )
