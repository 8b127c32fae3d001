"""The vlan plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.node import master
from cni_common.node.veth import veth_mtu
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.ipam_config import ipam_schema, ipam_type, own_dns
from cni_common.spec.request import PROTOCOL_PROPERTIES
from cni_common.spec.schema import key_schema

if TYPE_CHECKING:
    from typing import Self

    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

_ID_MAX = 4094  # IEEE 802.1Q, 9.6: 4095 is reserved

SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        **master.PROPERTIES,
        "master": key_schema("string", "Interface below, which carries the tagged frames."),
        "vlanId": key_schema(
            "integer",
            "VLAN of the interface; 0: frames with a priority and no VLAN.",
            minimum=0,
            maximum=_ID_MAX,
        ),
        "ipam": ipam_schema("Address management; it must name a plugin."),
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    master: str
    vlan: int  # VLAN id, 0 = frames with a priority alone
    mtu: int  # bytes, 0 = the master's
    in_container: bool  # where the master is
    ipam: str  # type of the IPAM plugin
    dns: Json | None  # replaces the DNS settings of IPAM; None = keeps them

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7."""
        config = req.config
        name = master.name_in(config)
        if not name:
            raise CNIError(
                Code.INVALID_CONFIG,
                '"master" field is required. It names the interface that carries the tagged frames',
            )
        if not ipam_type(config):
            raise CNIError(
                Code.INVALID_CONFIG, 'no plugin name provided: "ipam" must name an IPAM plugin'
            )
        return cls(
            master=name,
            vlan=config.get("vlanId", 0),
            mtu=veth_mtu(config.get("mtu", 0)),
            in_container=config.get("linkInContainer", False),
            ipam=ipam_type(config),
            dns=own_dns(config),
        )
