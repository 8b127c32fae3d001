"""The sbr plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import parse_address
from cni_common.spec.request import PROTOCOL_PROPERTIES
from cni_common.spec.schema import key_schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from cni_common.spec.names import Address
    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

_U32 = 2**32 - 1

SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        "table": key_schema(
            "integer",
            "Table to which the rules lead; absent: tables are chosen, and the routes moved there.",
            minimum=1,
            maximum=_U32,
        ),
        "gateways": {
            "type": "array",
            "description": "Gateways instead of those of the previous plugin, one of each family.",
            "items": {"type": "string"},
        },
        "addSourceHints": key_schema(
            "boolean", "Keep the routes to subnets in the main table, with a source address."
        ),
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    table: int  # 0: chosen
    gateways: Mapping[int, Address]  # by IP version
    source_hints: bool

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7."""
        config = req.config
        return cls(
            table=config.get("table", 0),
            gateways=_gateways(config.get("gateways", ())),
            source_hints=config.get("addSourceHints", False),
        )


def _gateways(given: Sequence[str]) -> Mapping[int, Address]:
    found: dict[int, Address] = {}
    for text in given:
        try:
            address = parse_address(text)
        except ValueError as error:
            raise CNIError(Code.INVALID_CONFIG, f'"gateways" is no address: {error}') from None
        if address.is_unspecified or address.is_multicast:
            raise CNIError(
                Code.INVALID_CONFIG, f'"gateways" has {address}, which no gateway can have'
            )
        other = found.setdefault(address.version, address)
        if other is not address:
            raise CNIError(
                Code.INVALID_CONFIG,
                f'"gateways" has two addresses of IPv{address.version}, {other} and {address}:'
                " name one of each family",
            )
    return found
