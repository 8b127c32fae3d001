"""Keys of a configuration about addresses, shared by interface and IPAM plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import CURRENT_VERSION
from cni_common.spec.result import DNS_SCHEMA, Result, Route
from cni_common.spec.schema import key_schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_common.spec.wire import Json

# The keys of CNI_ARGS that this suite knows. Interface and IPAM plugin get the same string, so the
# keys of one plugin must not make the other fail.
CNI_ARGS = frozenset({"IP", "MAC", "GATEWAY"})


ROUTES_SCHEMA: Json = {
    "type": "array",
    "description": "Routes for the container, passed on in the result.",
    "items": {
        "type": "object",
        "properties": {
            "dst": key_schema("string", "Destination, such as 0.0.0.0/0."),
            "gw": key_schema("string", "Next hop; by default the address's gateway."),
            "mtu": key_schema("integer", "MTU along the route, bytes."),
            "advmss": key_schema("integer", "TCP segment size to advertise, bytes."),
            "priority": key_schema("integer", "Metric; the lowest wins."),
            "table": key_schema("integer", "Number of the routing table."),
            "scope": key_schema("integer", "Scope of the destination: 0, 253 or 254."),
        },
    },
}


def ipam_type(config: Json) -> str:
    """Return the type of the IPAM plugin, "" if the configuration names none."""
    return str(config.get("ipam", {}).get("type", ""))


def parse_routes(routes: Sequence[Json]) -> list[Route]:
    """Return the routes of `ipam.routes`. Raises CNIError 7 that names the invalid route."""
    for index, route in enumerate(routes):
        if not route.get("dst"):
            raise CNIError(Code.INVALID_CONFIG, f'ipam.routes[{index}]: "dst" is missing')
    try:
        parsed = Result.parse({"cniVersion": CURRENT_VERSION, "routes": list(routes)})
        parsed.refuse_contradictions("ipam.routes")
    except CNIError as error:
        reason = error.msg.removeprefix("malformed result: ")
        where = "" if reason.startswith("ipam.") else "ipam."
        raise CNIError(Code.INVALID_CONFIG, f"{where}{reason}") from None
    return parsed.routes


def own_dns(config: Json) -> Json | None:
    """Return the `dns` with which an interface plugin replaces that of IPAM, None to keep IPAM's.

    Any list, even an empty one, or a domain replaces it, as in the reference.
    """
    dns = config.get("dns", {})
    lists = [key for key, schema in DNS_SCHEMA["properties"].items() if schema["type"] == "array"]
    if dns.get("domain") or any(key in dns for key in lists):
        return {key: value for key, value in dns.items() if value}
    return None
