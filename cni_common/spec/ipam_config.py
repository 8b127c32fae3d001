"""Keys of a configuration about addresses and MACs, shared by interface and IPAM plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import CURRENT_VERSION
from cni_common.spec.result import DNS_SCHEMA, Result, Route
from cni_common.spec.schema import key_schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

# The keys of CNI_ARGS that this suite knows. Interface and IPAM plugin get the same string, so the
# keys of one plugin must not make the other fail.
CNI_ARGS = frozenset({"IP", "MAC", "GATEWAY"})
_HEX = frozenset("0123456789abcdefABCDEF")


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

# Where a runtime asks for a MAC; each plugin with these keys takes it from `requested_mac`.
MAC_PROPERTIES: Json = {
    "args": {
        "type": "object",
        "description": "Arguments of the runtime, by the CNI conventions.",
        "properties": {
            "cni": {
                "type": "object",
                "description": "Arguments for all plugins.",
                "properties": {"mac": key_schema("string", "MAC of the container's interface.")},
            }
        },
    },
    "runtimeConfig": {
        "type": "object",
        "description": "Values from the runtime, by capability.",
        "properties": {"mac": key_schema("string", "MAC by the capability `mac`.")},
    },
}


def ipam_schema(description: str) -> Json:
    """Return the schema of an interface plugin's key `ipam`, with what it means there."""
    type = key_schema("string", "Name of the IPAM plugin.")
    return {"type": "object", "description": description, "properties": {"type": type}}


def ipam_type(config: Json) -> str:
    """Return the type of the IPAM plugin, "" if the configuration names none."""
    return str(config.get("ipam", {}).get("type", ""))


def has_advertised_routes(config: Json) -> bool:
    """Tell whether IPAM is DHCPv6: its routes are those that routers advertise."""
    ipam = config.get("ipam", {})
    return ipam.get("type") == "dhcp" and ipam.get("family") in ("ipv6", "both")


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


def requested_mac(req: Request, configured: str = "") -> str:
    """Return the MAC that the container's interface is to have, "" for none.

    The first that is given counts: runtimeConfig.mac, args.cni.mac, MAC in CNI_ARGS, and last
    `configured`, a key of the plugin's own. Raises CNIError 7 for a malformed MAC, 4 for CNI_ARGS.
    """
    config = req.config
    by_args = req.cni_args(CNI_ARGS).get("MAC")
    text = (
        config.get("runtimeConfig", {}).get("mac")
        or config.get("args", {}).get("cni", {}).get("mac")
        or by_args
        or configured
    )
    try:
        return parse_mac(text) if text else ""
    except ValueError as error:
        raise CNIError(
            Code.INVALID_CONFIG, f"the MAC of the container's interface is {error}"
        ) from None


def parse_mac(text: str) -> str:
    """Return an Ethernet MAC in colon form. Raises ValueError unless it is 6 bytes, unicast."""
    digits = ""
    for mark, width, count in ((":", 2, 6), ("-", 2, 6), (".", 4, 3)):
        groups = text.split(mark)
        if [len(group) for group in groups] == [width] * count:
            digits = "".join(groups)
    if not digits or not _HEX.issuperset(digits):
        raise ValueError(f"{text!r}, not six bytes such as 02:11:22:33:44:55")
    octets = bytes.fromhex(digits)
    if octets[0] & 1 or not any(octets):
        raise ValueError(f"{text!r}, which no interface can have: it is a group address or zero")
    return octets.hex(":")
