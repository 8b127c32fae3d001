"""The bandwidth plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import parse_cidr
from cni_common.spec.request import PROTOCOL_PROPERTIES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from cni_common.spec.names import Subnet
    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

_U32, _U64 = 2**32 - 1, 2**64 - 1
# Runtimes send the largest number that they have if no burst was asked for: of 31 or 32 bits, or of
# as many bytes in bits (CRI-O). A bucket of so much lets through all of most transfers, unless the
# rate empties it within a second.
_NO_BURST_LEAST, _NO_BURST_SECONDS = _U32 >> 1, 1
_LIMITS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
SUBNETS_MAX = 1000


def _keys(more: str) -> dict[str, Json]:
    texts = (
        "Rate limit into the container in bit/s, 0: no limit",
        "Burst into the container in bits, 0: chosen by the rate",
        "Rate limit out of the container in bit/s, 0: no limit",
        "Burst out of the container in bits, 0: chosen by the rate",
    )
    numbers: dict[str, Json] = {
        key: {"type": "integer", "minimum": 0, "maximum": _U64, "description": f"{text}{more}."}
        for key, text in zip(_LIMITS, texts, strict=True)
    }
    subnets = {
        "unshapedSubnets": "Subnets of peers that are exempt from the limits",
        "shapedSubnets": "The only subnets of peers with limits",
    }
    lists: dict[str, Json] = {
        key: {"type": "array", "items": {"type": "string"}, "description": f"{text}{more}."}
        for key, text in subnets.items()
    }
    return {**numbers, **lists}


SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        **_keys(""),
        "runtimeConfig": {
            "type": "object",
            "description": "Values from the runtime, by capability.",
            "properties": {
                "bandwidth": {
                    "type": "object",
                    "description": "Limits by the capability `bandwidth`.",
                    "properties": _keys("; used if no limit stands beside `type`"),
                }
            },
        },
    },
}


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit of one direction."""

    rate: int  # bytes a second
    burst: int  # bytes, 0 = chosen by the rate


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent. Directions are the container's."""

    ingress: Limit | None = None
    egress: Limit | None = None
    subnets: Sequence[Subnet] = ()  # of the container's peers
    only_subnets: bool = False  # True: the limits are for `subnets` alone; False: for all others

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7."""
        given = req.config
        if not any(given.get(key) for key in _LIMITS):  # zero means no limit
            given = given.get("runtimeConfig", {}).get("bandwidth", {})
        subnets, only = _subnets(given)
        if not subnets:
            subnets, only = _subnets(req.config)
        return cls(_limit(given, "ingress"), _limit(given, "egress"), subnets, only)

    def __bool__(self) -> bool:
        return bool(self.ingress or self.egress)


def _limit(given: Json, direction: str) -> Limit | None:
    rate_key, burst_key = f"{direction}Rate", f"{direction}Burst"
    rate, burst = given.get(rate_key, 0), given.get(burst_key, 0)
    if burst // 8 >= _U32:
        raise _refuse(f'"{burst_key}" is {burst}, it must be less than 4 GiB, {_U32 * 8} bits')
    if burst >= _NO_BURST_LEAST and burst > rate * _NO_BURST_SECONDS:
        burst = 0
    if not rate:
        if burst:
            raise _refuse(f'"{burst_key}" is {burst}: if burst is set, "{rate_key}" must be, too')
        return None
    if rate < 8:
        raise _refuse(f'"{rate_key}" is {rate}, it must be 8 bits a second at least, or 0')
    return Limit(rate // 8, -(-burst // 8) if burst < 8 else burst // 8)


def _subnets(given: Json) -> tuple[Sequence[Subnet], bool]:
    unshaped, shaped = given.get("unshapedSubnets", ()), given.get("shapedSubnets", ())
    if unshaped and shaped:
        raise _refuse('choose one of "unshapedSubnets" and "shapedSubnets"')
    key = "shapedSubnets" if shaped else "unshapedSubnets"
    found: dict[Subnet, None] = {}
    for text in shaped or unshaped:
        try:
            found[parse_cidr(text).network] = None
        except ValueError as error:
            raise _refuse(f'"{key}": {error}') from None
    if len(found) > SUBNETS_MAX:
        raise _refuse(f'"{key}" has {len(found)} subnets, {SUBNETS_MAX} are possible')
    return tuple(found), bool(shaped)


def _refuse(text: str) -> CNIError:
    return CNIError(Code.INVALID_CONFIG, text)
