"""static: gives out the addresses of configuration and runtime, and stores nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code, drifted, listed
from cni_common.spec.ipam_config import CNI_ARGS, ROUTES_SCHEMA, parse_routes
from cni_common.spec.names import FAMILIES, parse_address, parse_cidr
from cni_common.spec.request import PROTOCOL_PROPERTIES
from cni_common.spec.result import DNS_SCHEMA, IPConfig, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import TypeVar

    from cni_common.node.host import Host
    from cni_common.spec.names import Address
    from cni_common.spec.request import Request
    from cni_common.spec.result import Route
    from cni_common.spec.undo import Undo
    from cni_common.spec.wire import Json

    T = TypeVar("T")

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]


def _ips(description: str) -> Json:
    return {"type": "array", "items": {"type": "string"}, "description": description}


SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        "ipam": {
            "type": "object",
            "description": "Settings of the IPAM plugin.",
            "properties": {
                "type": {"type": "string", "description": "File name of the plugin: static."},
                "addresses": {
                    "type": "array",
                    "description": "Addresses of the attachment.",
                    "items": {
                        "type": "object",
                        "properties": {
                            "address": {
                                "type": "string",
                                "description": "Address with its prefix length: 10.0.0.5/24.",
                            },
                            "gateway": {
                                "type": "string",
                                "description": "Gateway for the container.",
                            },
                        },
                    },
                },
                "routes": ROUTES_SCHEMA,
                "dns": {**DNS_SCHEMA, "description": "DNS settings, passed on in the result."},
            },
        },
        "runtimeConfig": {
            "type": "object",
            "description": "Values from the runtime, by capability.",
            "properties": {"ips": _ips("Addresses, replacing all others.")},
        },
        "args": {
            "type": "object",
            "description": "Arguments of the runtime, by the CNI conventions.",
            "properties": {
                "cni": {
                    "type": "object",
                    "description": "Arguments for all plugins.",
                    "properties": {"ips": _ips("Addresses, replacing those of ipam and CNI_ARGS.")},
                }
            },
        },
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    ips: list[IPConfig]
    routes: list[Route]
    dns: Json

    @classmethod
    def of(cls, req: Request) -> Conf:
        """Return the configuration in `req`. Raises CNIError 7, or 4 for CNI_ARGS."""
        ipam = req.config.get("ipam")
        if ipam is None:
            raise _refuse("IPAM config missing 'ipam' key")
        ips = _addresses(req, ipam)
        _check_count(ips, req.cni_version)
        _refuse_contradictions(ips)
        dns = {key: value for key, value in ipam.get("dns", {}).items() if value}
        return cls(ips, parse_routes(ipam.get("routes", ())), dns)


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Return the addresses. Makes nothing, so pushes no undo. Raises CNIError 4 or 7."""
    conf = Conf.of(req)
    lost = _lost_gateways(req, conf.ips)
    if lost:
        host.log(
            f"static: network {req.network}: the runtime's addresses replace ipam.addresses, and"
            f" gateway {listed(lost)} goes with them; name it by GATEWAY of CNI_ARGS, or by the"
            ' "gw" of a route'
        )
    return Result(ips=conf.ips, routes=conf.routes, dns=conf.dns)


def delete(req: Request, host: Host) -> None:
    """Nothing to do: ADD stores nothing."""


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each address, or its configured gateway, that prevResult lacks."""
    conf = Conf.of(req)
    previous = req.require_prev_result()
    gateways = {ip.address: ip.gateway for ip in previous.ips}
    for ip in conf.ips:
        if ip.address not in gateways:
            yield drifted(f"{ip.address} of {req.ifname} is missing in prevResult")
        elif ip.gateway not in (None, gateways[ip.address]):
            yield drifted(
                f"the gateway of {ip.address} is {gateways[ip.address]} in prevResult,"
                f" {ip.gateway} in the configuration"
            )


def gc(req: Request, host: Host) -> None:
    """Nothing to do: ADD stores nothing."""


def status(req: Request, host: Host) -> None:
    """Raise CNIError 7 if the configuration is invalid."""
    Conf.of(req)


def lifecycle() -> None:
    """Return nothing: attachments have no record."""


def _addresses(req: Request, ipam: Json) -> list[IPConfig]:
    """Return the addresses of the source that overrides the others, with their gateways."""
    asked = req.cni_args(CNI_ARGS)
    by_runtime = req.config.get("runtimeConfig", {}).get("ips", ())
    by_args = req.config.get("args", {}).get("cni", {}).get("ips", ())
    if by_runtime:
        ips = _plain(by_runtime, "runtimeConfig.ips", Code.INVALID_CONFIG)
    elif by_args:
        ips = _plain(by_args, "args.cni.ips", Code.INVALID_CONFIG)
    else:
        ips = _configured(ipam.get("addresses", ()))
        ips += _plain(_parts(asked, "IP"), "CNI_ARGS: IP", Code.INVALID_ENVIRONMENT)
    gateways = _parsed(
        _parts(asked, "GATEWAY"), parse_address, "CNI_ARGS: GATEWAY", Code.INVALID_ENVIRONMENT
    )
    for ip in ips:
        if ip.gateway is None:
            ip.gateway = _gateway_in(ip, gateways)
    return ips


def _configured(entries: Sequence[Json]) -> list[IPConfig]:
    ips = []
    for index, entry in enumerate(entries):
        where = f"ipam.addresses[{index}]"
        (address,) = _parsed(
            [entry.get("address", "")], parse_cidr, f"{where}.address", Code.INVALID_CONFIG
        )
        given = [entry["gateway"]] if entry.get("gateway") else []
        gateways = _parsed(given, parse_address, f"{where}.gateway", Code.INVALID_CONFIG)
        ips.append(IPConfig(address, gateways[0] if gateways else None))
    return ips


def _plain(texts: Iterable[str], where: str, code: int) -> list[IPConfig]:
    return [IPConfig(address) for address in _parsed(texts, parse_cidr, where, code)]


def _parsed(texts: Iterable[str], parse: Callable[[str], T], where: str, code: int) -> list[T]:
    parsed = []
    for text in texts:
        try:
            parsed.append(parse(text))
        except ValueError:
            form = "10.0.0.5/24, in CIDR notation" if parse is parse_cidr else "10.0.0.1"
            raise CNIError(code, f'{where} is "{text}", expected such as {form}') from None
    return parsed


def _parts(asked: Mapping[str, str], key: str) -> list[str]:
    text = asked.get(key, "")
    return [part.strip() for part in text.split(",")] if text else []


def _gateway_in(ip: IPConfig, gateways: Sequence[Address]) -> Address | None:
    """Return the last of `gateways` that lies in the subnet of `ip`, as the reference does."""
    fitting = [one for one in gateways if one in ip.address.network]
    return fitting[-1] if fitting else None


def _lost_gateways(req: Request, ips: Sequence[IPConfig]) -> list[str]:
    """Return the gateways of ipam.addresses that no address has, though one could need them."""
    entries = req.config["ipam"].get("addresses", ())
    configured = dict.fromkeys(entry["gateway"] for entry in entries if entry.get("gateway"))
    if not configured or all(ip.gateway is not None for ip in ips):
        return []
    used = {str(ip.gateway) for ip in ips}
    return [text for text in configured if text not in used]


def _check_count(ips: Sequence[IPConfig], version: str) -> None:
    versions = [ip.address.version for ip in ips]
    if version in FAMILIES[0] and max(versions.count(4), versions.count(6)) > 1:
        raise _refuse(f"CNI version {version} does not support more than 1 address per family")


def _refuse_contradictions(ips: list[IPConfig]) -> None:
    try:
        Result(ips=ips).refuse_contradictions("static")
    except CNIError as error:
        raise _refuse(error.msg) from None


def _refuse(text: str) -> CNIError:
    return CNIError(Code.INVALID_CONFIG, text)
