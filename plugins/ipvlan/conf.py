"""The ipvlan plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.node import master
from cni_common.node.veth import veth_mtu
from cni_common.spec.ipam_config import ipam_schema, ipam_type, own_dns
from cni_common.spec.request import PROTOCOL_PROPERTIES
from cni_common.spec.schema import key_schema

if TYPE_CHECKING:
    from typing import Self

    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

L2 = "l2"
MODES = (L2, "l3", "l3s")

SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        **master.PROPERTIES,
        "master": key_schema(
            "string",
            "Interface below; if absent, the only one of prevResult, or that of the default route.",
        ),
        "mode": key_schema(
            "string",
            'How packets pass the master, the same for all interfaces on it; "l2" if absent.',
            enum=["", *MODES],
        ),
        "mtu": key_schema("integer", "MTU in bytes; 0: the master's."),
        "ipam": ipam_schema("Address management; absent or empty: addresses of prevResult."),
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    master: str  # "" = the interface of prevResult, or of the default route
    mode: str  # one of MODES
    mtu: int  # bytes, 0 = the master's
    in_container: bool  # where the master is
    ipam: str  # type of the IPAM plugin, "" = addresses of prevResult
    dns: Json | None  # replaces other DNS settings; None = keeps them

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7."""
        config = req.config
        return cls(
            master=master.name_in(config),
            mode=config.get("mode") or L2,
            mtu=veth_mtu(config.get("mtu", 0)),
            in_container=config.get("linkInContainer", False),
            ipam=ipam_type(config),
            dns=own_dns(config),
        )
