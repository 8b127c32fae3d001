"""Results of the CNI specification, and their layouts in each version (SPEC.md section 5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import (
    CURRENT_VERSION,
    FAMILIES,
    SUPPORTED_VERSIONS,
    Address,
    Cidr,
    Subnet,
    is_whole,
    parse_address,
    parse_cidr,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Self, TypeVar

    from cni_common.spec.wire import Json

    T = TypeVar("T")


_STRINGS: Json = {"type": "array", "items": {"type": "string"}}
DNS_SCHEMA: Json = {
    "type": "object",
    "properties": {
        "nameservers": {**_STRINGS, "description": "DNS servers, in order of preference."},
        "domain": {"type": "string", "description": "Local domain for short names."},
        "search": {**_STRINGS, "description": "Domains to search for short names."},
        "options": {**_STRINGS, "description": "Options for the resolver."},
    },
}
# Ranges of the kernel (linux/rtnetlink.h): the scope is a byte, the others have 32 bits.
_U32 = 2**32 - 1
# Of one attachment. The kernel looks at all addresses of an interface to add one.
ADDRESSES_MAX = INTERFACES_MAX = 1000
_ROUTE_NUMBERS = {"mtu": _U32, "advmss": _U32, "priority": _U32, "table": _U32, "scope": 255}


def _keys(*names: str) -> Json:
    """Return a schema that only knows the spelling of these keys."""
    return {"properties": {name: {} for name in names}}


_ROUTES: Json = {"items": _keys("dst", "gw", *_ROUTE_NUMBERS)}
SCHEMA: Json = {
    "properties": {
        "cniVersion": {},
        "interfaces": {"items": _keys("name", "mac", "mtu", "sandbox", "socketPath", "pciID")},
        "ips": {"items": _keys("version", "interface", "address", "gateway")},
        "routes": _ROUTES,
        "ip4": {},
        "ip6": {},
        "dns": DNS_SCHEMA,
    }
}
OLD_IP_SCHEMA: Json = {"properties": {"ip": {}, "gateway": {}, "routes": _ROUTES}}


@dataclass(slots=True)
class Interface:
    """An interface of a result; `sandbox` is the path of its namespace, empty on the host."""

    name: str
    mac: str = ""
    mtu: int = 0  # bytes; 0 = unknown. Printed for 1.1.0 only
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


@dataclass(slots=True)
class IPConfig:
    """An address with its prefix, and the index of its interface in Result.interfaces."""

    address: Cidr
    gateway: Address | None = None
    interface: int | None = None


@dataclass(slots=True)
class Route:
    """A route; its numbers are those of rtnetlink (linux/rtnetlink.h), None = not set."""

    dst: Subnet
    gw: Address | None = None
    mtu: int | None = None  # bytes
    advmss: int | None = None  # bytes
    priority: int | None = None  # lower wins
    table: int | None = None
    scope: int | None = None


@dataclass(slots=True)
class Result:
    """The outcome of an ADD in the layout of spec 1.1.0 (SPEC.md section 5)."""

    interfaces: list[Interface] = field(default_factory=list)
    ips: list[IPConfig] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    dns: Json = field(default_factory=dict)

    def add_interface(self, interface: Interface) -> int:
        """Append `interface` and return its index."""
        self.interfaces.append(interface)
        return len(self.interfaces) - 1

    def refuse_contradictions(self, origin: str) -> None:
        """Raise CNIError 6 if no interface could be configured so; `origin` names the source.

        A gateway must be of the family of its address or route, no address may appear twice, and
        there are ADDRESSES_MAX of them at most.
        """
        wrong = [] if len(self.ips) <= ADDRESSES_MAX else [_too_many(self.ips, "ips")]
        wrong += [
            f"gateway {ip.gateway} for {ip.address}"
            for ip in self.ips
            if ip.gateway is not None and ip.gateway.version != ip.address.version
        ]
        wrong += [
            f"a route to {route.dst} via {route.gw}"
            for route in self.routes
            if route.gw is not None and route.gw.version != route.dst.version
        ]
        seen: set[Cidr] = set()
        for address in (ip.address for ip in self.ips):
            if address in seen:
                wrong.append(f"address {address} more than once")
            seen.add(address)
        if wrong:
            text = f"{origin} gives {wrong[0]}, which cannot be; correct it there"
            raise CNIError(Code.DECODING_FAILURE, text)

    @classmethod
    def parse(cls, data: Json, default_version: str = CURRENT_VERSION) -> Self:
        """Return the result in `data`, in the layout of its cniVersion or else `default_version`.

        Raises CNIError 6 that names the invalid entry, and 1 for an unknown version.
        """
        data = wire.fold(data, SCHEMA)
        version = data.get("cniVersion") or default_version
        if version not in SUPPORTED_VERSIONS:
            raise CNIError(
                Code.INCOMPATIBLE_VERSION,
                f'result has cniVersion "{version}", supported are {", ".join(SUPPORTED_VERSIONS)}',
            )
        try:
            return cls._of_ip4_ip6(data) if version in FAMILIES[0] else cls._of_lists(data)
        except ValueError as error:
            raise CNIError(Code.DECODING_FAILURE, f"malformed result: {error}") from None

    @classmethod
    def _of_lists(cls, data: Json) -> Self:
        for key, most in (("interfaces", INTERFACES_MAX), ("ips", ADDRESSES_MAX)):
            if len(_get(data, key, [])) > most:
                raise ValueError(_too_many(data[key], key))
        return cls(
            _parse_list(data, "interfaces", _parse_interface),
            _parse_list(data, "ips", _parse_ip),
            _parse_list(data, "routes", _parse_route),
            _parse_dns(_get(data, "dns", {})),
        )

    @classmethod
    def _of_ip4_ip6(cls, data: Json) -> Self:
        result = cls(dns=_parse_dns(_get(data, "dns", {})))
        for key in ("ip4", "ip6"):
            if key in data:
                entry = wire.fold(_get(data, key, {}), OLD_IP_SCHEMA)
                result.ips.append(_parse_ip(entry, "ip"))
                result.routes += _parse_list(entry, "routes", _parse_route)
        return result

    def to_json(self, version: str) -> dict[str, Any]:
        """Return the result in the layout of `version`, keys in the reference's order.

        Fields that the layout lacks are dropped, as in the reference. Raises CNIError 1 if a result
        of 0.1.0 or 0.2.0 would have no address.
        """
        if version in FAMILIES[0]:
            return self._to_ip4_ip6(version)
        old = version in FAMILIES[1]
        mtu = version == CURRENT_VERSION
        data: dict[str, Any] = {"cniVersion": version}
        lists = {
            "interfaces": [_interface_json(i, old=old, mtu=mtu) for i in self.interfaces],
            "ips": [_ip_json(ip, old=old) for ip in self.ips],
            "routes": [_route_json(route) for route in self.routes],
        }
        data |= {key: entries for key, entries in lists.items() if entries}
        dns = self._dns_json()
        return data | ({"dns": dns} if old or dns else {})

    def _to_ip4_ip6(self, version: str) -> dict[str, Any]:
        data: dict[str, Any] = {"cniVersion": version}
        for key, family in (("ip4", 4), ("ip6", 6)):
            first = next((ip for ip in self.ips if ip.address.version == family), None)
            if first is None:
                continue
            entry: dict[str, Any] = {"ip": str(first.address)}
            if first.gateway is not None:
                entry["gateway"] = str(first.gateway)
            routes = [
                _route_json(Route(route.dst, route.gw))
                for route in self.routes
                if route.dst.version == family
            ]
            data[key] = entry | ({"routes": routes} if routes else {})
        if len(data) == 1:
            raise CNIError(
                Code.INCOMPATIBLE_VERSION,
                f"cannot convert: no valid IP addresses, and a result of cniVersion {version}"
                " must have one; use 0.3.0 or newer",
            )
        return data | {"dns": self._dns_json()}

    def _dns_json(self) -> dict[str, Any]:
        return {key: self.dns[key] for key in DNS_SCHEMA["properties"] if self.dns.get(key)}


def _too_many(entries: Sequence[object], key: str) -> str:
    most = INTERFACES_MAX if key == "interfaces" else ADDRESSES_MAX
    return f'{len(entries)} entries in "{key}", of which {most} are possible'


def _get(entry: Json, key: str, default: T) -> T:
    """Return the value of `key`. Raises ValueError for another type than that of `default`."""
    value = entry.get(key, default)
    if type(value) is not type(default):
        expected, found = wire.type_name(default), wire.type_name(value)
        raise ValueError(f"{key}: {found} where {expected} is due")
    if isinstance(value, str) and not is_whole(value):
        raise ValueError(f"{key}: {value!r} contains a NUL, which is not allowed")
    return value


def _parsed(entry: Json, key: str, parse: Callable[[str], T]) -> T:
    text = _get(entry, key, "")
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _parse_list(data: Json, key: str, parse: Callable[[Json], T]) -> list[T]:
    """Return each object of the list `key`, parsed. Raises ValueError that names the place."""
    entries: list[Json] = _get(data, key, [])
    parsed = []
    for index, entry in enumerate(entries):
        where = f"{key}[{index}]"
        _get({where: entry}, where, {})
        try:
            parsed.append(parse(entry))
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from None
    return parsed


def _parse_interface(entry: Json) -> Interface:
    texts = [_get(entry, key, "") for key in ("name", "mac", "sandbox", "socketPath", "pciID")]
    return Interface(texts[0], texts[1], _get(entry, "mtu", 0), *texts[2:])


def _parse_ip(entry: Json, address: str = "address") -> IPConfig:
    return IPConfig(
        _parsed(entry, address, parse_cidr),
        _parsed(entry, "gateway", parse_address) if entry.get("gateway") else None,
        _get(entry, "interface", 0) if "interface" in entry else None,
    )


def _parse_route(entry: Json) -> Route:
    numbers = {key: _get(entry, key, 0) for key in _ROUTE_NUMBERS if key in entry}
    for key, number in numbers.items():
        if not 0 <= number <= _ROUTE_NUMBERS[key]:
            raise ValueError(f"{key}: {number} is not between 0 and {_ROUTE_NUMBERS[key]}")
    # Go leaves these three out when they are zero, table and scope stay.
    for key in ("mtu", "advmss", "priority"):
        if numbers.get(key) == 0:
            del numbers[key]
    dst = _parsed(entry, "dst", parse_cidr).network
    return Route(dst, _parsed(entry, "gw", parse_address) if entry.get("gw") else None, **numbers)


def _parse_dns(data: Json) -> Json:
    dns: dict[str, Any] = {}
    for key, schema in DNS_SCHEMA["properties"].items():
        value: Any = _get(data, key, "" if schema["type"] == "string" else [])
        if not all(isinstance(part, str) for part in value):
            raise ValueError(f"dns.{key}: all members must be strings")
        if value:
            dns[key] = value
    return dns


def _interface_json(interface: Interface, *, old: bool, mtu: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"name": interface.name}
    optional: dict[str, Any] = {"mac": interface.mac}
    if mtu:
        optional["mtu"] = interface.mtu
    optional["sandbox"] = interface.sandbox
    if not old:
        optional |= {"socketPath": interface.socket_path, "pciID": interface.pci_id}
    return data | {key: value for key, value in optional.items() if value}


def _ip_json(ip: IPConfig, *, old: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"version": str(ip.address.version)} if old else {}
    if ip.interface is not None:
        data["interface"] = ip.interface
    data["address"] = str(ip.address)
    if ip.gateway is not None:
        data["gateway"] = str(ip.gateway)
    return data


def _route_json(route: Route) -> dict[str, Any]:
    data: dict[str, Any] = {"dst": str(route.dst)}
    if route.gw is not None:
        data["gw"] = str(route.gw)
    for key in _ROUTE_NUMBERS:
        value = getattr(route, key)
        if value is not None:
            data[key] = value
    return data
