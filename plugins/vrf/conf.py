"""The vrf plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.policy_routing import RESERVED_TABLES
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import check_ifname
from cni_common.spec.request import PROTOCOL_PROPERTIES
from cni_common.spec.schema import key_schema

if TYPE_CHECKING:
    from typing import Self

    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

_U32 = 2**32 - 1

SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        "vrfname": key_schema("string", "Name of the VRF, made if it is not there."),
        "table": key_schema(
            "integer",
            "Routing table of the VRF; 0: chosen, or that of a VRF which is there.",
            minimum=0,
            maximum=_U32,
        ),
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    name: str  # of the VRF
    table: int  # 0: chosen

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7."""
        name, table = req.config.get("vrfname", ""), req.config.get("table", 0)
        if not name:
            raise CNIError(
                Code.INVALID_CONFIG,
                'configuration is expected to have a valid vrf name: set "vrfname"',
            )
        check_ifname(name, '"vrfname"', Code.INVALID_CONFIG)
        if name == req.ifname:
            raise CNIError(
                Code.INVALID_CONFIG,
                f"\"vrfname\" is '{name}', the name of the container's interface; choose another",
            )
        if table in RESERVED_TABLES - {0}:
            raise CNIError(
                Code.INVALID_CONFIG,
                f'"table" is {table}, which the system uses itself; choose another, or 0',
            )
        return cls(name, table)
