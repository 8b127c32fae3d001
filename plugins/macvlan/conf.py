"""The macvlan plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.node import master
from cni_common.node.veth import veth_mtu
from cni_common.spec.ipam_config import (
    MAC_PROPERTIES,
    ipam_schema,
    ipam_type,
    own_dns,
    requested_mac,
)
from cni_common.spec.request import PROTOCOL_PROPERTIES
from cni_common.spec.schema import key_schema

if TYPE_CHECKING:
    from typing import Self

    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

BRIDGE, PASSTHRU = "bridge", "passthru"
MODES = (BRIDGE, "private", "vepa", PASSTHRU)
_U32 = 2**32 - 1

SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        **master.PROPERTIES,
        "master": key_schema(
            "string", "Interface below; if absent, that of the default route, IPv4 first."
        ),
        "mode": key_schema(
            "string",
            'Traffic between the interfaces on one master; "bridge" if absent.',
            enum=["", *MODES],
        ),
        "mac": key_schema("string", "MAC of the container's interface; random if absent."),
        "bcqueuelen": key_schema(
            "integer",
            "Queue for broadcasts in packets, shared by one master; 0: the kernel's choice.",
            minimum=0,
            maximum=_U32,
        ),
        "ipam": ipam_schema("Address management; absent or empty: the network is L2 only."),
        **MAC_PROPERTIES,
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    master: str  # "" = the interface of the default route
    mode: str  # one of MODES
    mtu: int  # bytes, 0 = the master's
    mac: str  # "" = random; with PASSTHRU the master's
    in_container: bool  # where the master is
    broadcast_queue: int  # packets, 0 = the kernel's default
    ipam: str  # type of the IPAM plugin, "" = L2 only
    dns: Json | None  # replaces the DNS settings of IPAM; None = keeps them

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7, or 4 for CNI_ARGS."""
        config = req.config
        return cls(
            master=master.name_in(config),
            mode=config.get("mode") or BRIDGE,
            mtu=veth_mtu(config.get("mtu", 0)),
            mac=requested_mac(req, config.get("mac", "")),
            in_container=config.get("linkInContainer", False),
            broadcast_queue=config.get("bcqueuelen", 0),
            ipam=ipam_type(config),
            dns=own_dns(config),
        )
