"""The dummy plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        "ipam": ipam_schema("Address management; it must name a plugin."),
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    ipam: str  # type of the IPAM plugin
    dns: Json | None  # replaces the DNS settings of IPAM; None = keeps them

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7."""
        if not ipam_type(req.config):
            raise CNIError(
                Code.INVALID_CONFIG,
                'dummy interface requires an IPAM configuration: "ipam" must name an IPAM plugin',
            )
        return cls(ipam_type(req.config), own_dns(req.config))
