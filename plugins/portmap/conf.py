"""The portmap plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cni_common.node.masquerade import BACKENDS
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import parse_address
from cni_common.spec.request import PROTOCOL_PROPERTIES
from cni_common.spec.schema import one_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from cni_common.spec.names import Address, Cidr
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.wire import Json

PLUGIN = "portmap"
NFTABLES, IPTABLES = BACKENDS
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}  # IPPROTO_* of linux/in.h
_PORT_MAX = 65535
_MARK_BIT_MAX = 31


def _strings(description: str) -> Json:
    return {"type": "array", "items": {"type": "string"}, "description": description}


SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        "backend": {
            "type": "string",
            "enum": list(BACKENDS),
            "description": 'Backend; "nftables" unless another key requires iptables.',
        },
        "snat": {
            "type": "boolean",
            "description": "Masquerade the container's and the node's connections to mapped ports.",
        },
        "masqAll": {
            "type": "boolean",
            "description": "Masquerade all connections to mapped ports; needs snat.",
        },
        "markMasqBit": {
            "type": "integer",
            "description": "Bit of the packet mark for masquerading by iptables, 0 to 31.",
        },
        "externalSetMarkChain": {
            "type": "string",
            "description": "Chain of iptables that marks packets for masquerading by others.",
        },
        "conditionsV4": _strings("Matches that IPv4 connections must meet to be mapped."),
        "conditionsV6": _strings("Matches that IPv6 connections must meet to be mapped."),
        "runtimeConfig": {
            "type": "object",
            "description": "Values from the runtime, by capability.",
            "properties": {
                "portMappings": {
                    "type": "array",
                    "description": "Ports by the capability `portMappings`.",
                    "items": {
                        "type": "object",
                        "properties": {
                            "hostPort": {
                                "type": "integer",
                                "description": "Port of the node, 1 to 65535.",
                            },
                            "containerPort": {
                                "type": "integer",
                                "description": "Port of the container, 1 to 65535.",
                            },
                            "protocol": {
                                "type": "string",
                                "description": "tcp, udp or sctp; tcp if absent.",
                            },
                            "hostIP": {
                                "type": "string",
                                "description": "Address of the node; absent: every address.",
                            },
                        },
                    },
                },
            },
        },
    },
}


@dataclass(frozen=True, slots=True)
class Port:
    """A mapping of a node's port, or of `count` ports in a row, to as many of the container."""

    protocol: str
    host_port: int
    container_port: int
    host_ip: Address | None = None
    count: int = 1

    def __str__(self) -> str:
        numbers = f"{self.host_port}-{self.last}" if self.count > 1 else f"{self.host_port}"
        if self.host_ip is None:
            return f"{numbers}/{self.protocol}"
        address = f"[{self.host_ip}]" if self.host_ip.version == 6 else str(self.host_ip)
        return f"{address}:{numbers}/{self.protocol}"

    @property
    def last(self) -> int:
        """The last of the node's ports."""
        return self.host_port + self.count - 1

    def each(self) -> Iterator[Port]:
        """Yield the mapping of each port."""
        if self.count == 1:
            yield self
            return
        for number in range(self.count):
            host, container = self.host_port + number, self.container_port + number
            yield Port(self.protocol, host, container, self.host_ip)

    def serves(self, version: int) -> bool:
        """Tell whether the mapping is for connections of this IP version."""
        return self.host_ip is None or self.host_ip.version == version

    @property
    def only_at(self) -> Address | None:
        """The one node address of the mapping, None: every address."""
        return None if self.host_ip is None or self.host_ip.is_unspecified else self.host_ip


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    backend: str
    ports: Sequence[Port]
    addresses: Mapping[int, Cidr]  # the container's, by IP version
    snat: bool = True
    masquerade_all: bool = False
    mark_bit: int = 13
    mark_chain: str = ""  # "" = our own
    conditions: Mapping[int, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7."""
        config = req.config
        bit, chain = config.get("markMasqBit"), config.get("externalSetMarkChain")
        if bit is not None and chain is not None:
            raise _refuse('choose one of "externalSetMarkChain" and "markMasqBit"')
        if bit is not None and not 0 <= bit <= _MARK_BIT_MAX:
            raise _refuse(f'"markMasqBit" is {bit}, it must be 0 to {_MARK_BIT_MAX}')
        conditions = _conditions(config)
        return cls(
            backend=_backend(config, conditions, chain or ""),
            ports=_ports(config),
            addresses=_addresses(req.prev_result, req.ifname),
            snat=config.get("snat", True),
            masquerade_all=config.get("masqAll", False),
            mark_bit=13 if bit is None else bit,
            mark_chain=_chain(chain or ""),
            conditions=conditions,
        )

    @classmethod
    def of_leftover(cls, req: Request) -> Self:
        """Return the valid parts of `req`: DEL must go on."""
        ports = []
        for number, entry in enumerate(_entries(req.config)):
            try:
                ports.append(_port(entry, number))
            except CNIError:
                continue
        try:
            addresses = _addresses(req.prev_result, req.ifname)
        except CNIError:
            addresses = {}
        return cls(NFTABLES, _in_rows(ports), addresses, conditions=_conditions(req.config))

    @property
    def opens_localhost(self) -> bool:
        """Whether connections from 127.0.0.1 must reach the container."""
        return self.snat and any(cidr.version == 4 for _, cidr in self.targets())

    def singles(self) -> Iterator[Port]:
        """Yield the mapping of each port."""
        for port in self.ports:
            yield from port.each()

    def targets(self) -> Iterator[tuple[Port, Cidr]]:
        """Yield each mapping with its target address of the container, one per family."""
        for port in self.ports:
            for version, address in self.addresses.items():
                if port.serves(version):
                    yield port, address


def _entries(config: Json) -> Sequence[Json]:
    entries: Sequence[Json] = config.get("runtimeConfig", {}).get("portMappings", ())
    return entries


def _ports(config: Json) -> list[Port]:
    """Return the mappings, those of ports in a row as one. Raises CNIError 7."""
    ports: list[Port] = []
    seen: dict[tuple[object, ...], Port] = {}
    for number, entry in enumerate(_entries(config)):
        port = _port(entry, number)
        other = seen.setdefault((port.protocol, port.host_port, port.host_ip), port)
        if other.container_port != port.container_port:
            raise _refuse(
                f"host port {port} is mapped twice, to container ports {other.container_port}"
                f" and {port.container_port}"
            )
        if other is port:
            ports.append(port)
    return _in_rows(ports)


def _in_rows(ports: Sequence[Port]) -> list[Port]:
    """Return `ports`, with one mapping for those in a row, also where protocols alternate."""
    first: list[Port] = []
    counts: list[int] = []
    latest: dict[tuple[object, ...], int] = {}
    for port in ports:
        number = latest.get((port.protocol, port.host_ip), -1)
        if number >= 0:
            shift, one = counts[number], first[number]
            if (port.host_port, port.container_port) == (
                one.host_port + shift,
                one.container_port + shift,
            ):
                counts[number] += 1
                continue
        latest[port.protocol, port.host_ip] = len(first)
        first.append(port)
        counts.append(1)
    return [
        replace(one, count=count) if count > 1 else one
        for one, count in zip(first, counts, strict=True)
    ]


def _port(entry: Json, number: int) -> Port:
    host, container = entry.get("hostPort", 0), entry.get("containerPort", 0)
    if not (1 <= host <= _PORT_MAX and 1 <= container <= _PORT_MAX):
        key = "containerPort" if 1 <= host <= _PORT_MAX else "hostPort"
        found = entry.get(key, 0)
        raise _refuse(f"portMappings[{number}]: {key} is {found}, it must be 1 to {_PORT_MAX}")
    protocol = entry.get("protocol") or "tcp"
    if protocol not in PROTOCOLS:
        protocol = protocol.lower()
    if protocol not in PROTOCOLS:
        known = one_of(protocol, list(PROTOCOLS))
        raise _refuse(f"portMappings[{number}]: protocol is {known}")
    text = entry.get("hostIP", "")
    try:
        host_ip = parse_address(text) if text else None
    except ValueError:
        raise _refuse(f'portMappings[{number}]: hostIP "{text}" is not an IP address') from None
    return Port(protocol, host, container, host_ip)


def _addresses(previous: Result | None, ifname: str) -> dict[int, Cidr]:
    """Return the first address of each family that is not another interface's."""
    found: dict[int, Cidr] = {}
    interfaces = previous.interfaces if previous else []
    for ip in previous.ips if previous else ():
        if ip.interface is not None and 0 <= ip.interface < len(interfaces):
            interface = interfaces[ip.interface]
            if interface.name != ifname or not interface.sandbox:
                continue
        found.setdefault(ip.address.version, ip.address)
    return found


def _conditions(config: Json) -> dict[int, Sequence[str]]:
    keys = {4: "conditionsV4", 6: "conditionsV6"}
    return {version: tuple(config.get(key, ())) for version, key in keys.items()}


def _backend(config: Json, conditions: Mapping[int, Sequence[str]], chain: str) -> str:
    """Return the configured backend, or the one that supports the other keys."""
    given = config.get("backend", "")
    chosen = given or (IPTABLES if chain else "")
    for version, tokens in conditions.items():
        if not tokens:
            continue
        key, style = f"conditionsV{version}", NFTABLES
        if tokens[0].startswith(("-", "!")):
            style = IPTABLES
        if chosen and style != chosen:
            raise _refuse(f'"{key}" is written for {style}, the backend is {chosen}')
        chosen = style
        for token in tokens:
            if not token.isprintable() or (style == NFTABLES and ";" in token):
                raise _refuse(f'"{key}" has the part {token!r}, which cannot be in a rule')
    return chosen or NFTABLES


def _chain(name: str) -> str:
    if name and (name[0] in "-!" or not name.isprintable() or " " in name or '"' in name):
        raise _refuse(f'"externalSetMarkChain" is {name!r}, which cannot be the name of a chain')
    return name


def _refuse(text: str) -> CNIError:
    return CNIError(Code.INVALID_CONFIG, text)
