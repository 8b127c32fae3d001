"""The dhcp plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import is_absolute
from cni_common.spec.request import PROTOCOL_PROPERTIES
from cni_common.spec.schema import key_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

PLUGIN = "dhcp"
IPV4, IPV6, BOTH = "ipv4", "ipv6", "both"
DEFAULT_SOCKET = "/run/cni/dhcp.sock"
_SOCKET_BYTES_MAX = 107  # of sockaddr_un.sun_path, without its NUL (unix(7))
_VALUE_BYTES_MAX = 255
_U32 = 2**32 - 1
_NAMES = {
    "dhcp-client-identifier": 61,
    "host-name": 12,
    "routers": 3,
    "subnet-mask": 1,
    "user-class": 77,
    "vendor-class-identifier": 60,
}
_SUBNET_MASK, _ROUTERS, _CLASSLESS_ROUTES = 1, 3, 121
# Asked for by default: also DNS servers, domain, MTU, static routes, NTP servers, search list.
_REQUESTED = (_SUBNET_MASK, _CLASSLESS_ROUTES, _ROUTERS, 6, 15, 26, 33, 42, 119)
# The client's own: pad, requested address, overload, message type, server, parameters, end.
_NOT_PROVIDED = (0, 50, 52, 53, 54, 55, 255)
_NOT_REQUESTED = (0, 255)

SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        "ipam": {
            "type": "object",
            "description": "Settings of the IPAM plugin.",
            "properties": {
                "type": key_schema("string", "File name of the IPAM plugin: dhcp."),
                "daemonSocketPath": key_schema(
                    "string", "Socket of the daemon `dhcp daemon`.", default=DEFAULT_SOCKET
                ),
                "family": key_schema(
                    "string",
                    "IP versions of the addresses: all of them are given, or none.",
                    default=IPV4,
                    enum=[IPV4, IPV6, BOTH],
                ),
                "provide": {
                    "type": "array",
                    "description": "Options that the client sends to the DHCPv4 server.",
                    "items": {
                        "type": "object",
                        "properties": {
                            "option": key_schema("string", "Name or number of the option."),
                            "value": key_schema("string", "Its value, a text."),
                            "fromArg": key_schema(
                                "string",
                                "Key of CNI_ARGS whose value, if there is one, replaces `value`.",
                            ),
                        },
                    },
                },
                "request": {
                    "type": "array",
                    "description": "Options that the client asks the DHCPv4 server for.",
                    "items": {
                        "type": "object",
                        "properties": {
                            "option": key_schema("string", "Name or number of the option."),
                            "skipDefault": key_schema(
                                "boolean", "Ask for none but those listed here."
                            ),
                        },
                    },
                },
                "priority": key_schema(
                    "integer",
                    "Metric of all routes of DHCPv4; 0: none is set.",
                    minimum=0,
                    maximum=_U32,
                ),
            },
        },
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    socket: str  # absolute path
    provided: Mapping[int, bytes]  # by the option's code
    requested: Sequence[int]  # codes of options
    priority: int  # metric of routes, 0 = none
    family: str = IPV4

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7."""
        ipam = req.config.get("ipam")
        if ipam is None:
            raise _refuse("IPAM config missing 'ipam' key")
        path = ipam.get("daemonSocketPath") or DEFAULT_SOCKET
        if not is_absolute(path) or len(path.encode()) > _SOCKET_BYTES_MAX:
            raise _refuse(
                f'ipam.daemonSocketPath "{path}" must be an absolute path of at most'
                f" {_SOCKET_BYTES_MAX} bytes"
            )
        family = ipam.get("family") or IPV4
        options = [key for key in ("provide", "request") if ipam.get(key)]
        if options and family == IPV6:
            raise _refuse(
                f'ipam.{options[0]} has options of DHCPv4, and ipam.family is "{IPV6}": leave it'
                " out"
            )
        arguments = _arguments(req.environ.get("CNI_ARGS", ""))
        return cls(
            path,
            dict(_provided(ipam.get("provide", ()), arguments)),
            _requested(ipam.get("request", ())),
            ipam.get("priority", 0),
            family,
        )


def socket_of(req: Request) -> str:
    """Return the daemon's socket, also of a configuration with other faults: for DEL and GC."""
    path = str(req.config.get("ipam", {}).get("daemonSocketPath") or DEFAULT_SOCKET)
    is_usable = is_absolute(path) and len(path.encode()) <= _SOCKET_BYTES_MAX
    return path if is_usable else DEFAULT_SOCKET


def _arguments(text: str) -> dict[str, str]:
    """Return all of CNI_ARGS: as in the reference, a configuration may name any key."""
    pairs = (pair.partition("=") for pair in text.split(";"))
    return {key: value for key, equals, value in pairs if equals}


def _provided(entries: Sequence[Json], arguments: Mapping[str, str]) -> Iterator[tuple[int, bytes]]:
    for index, entry in enumerate(entries):
        where = f"ipam.provide[{index}]"
        code = _code(entry.get("option", ""), where, _NOT_PROVIDED)
        source, value = "value", entry.get("value", "")
        if entry.get("fromArg") in arguments:
            source = f"value of {entry['fromArg']} in CNI_ARGS"
            value = arguments[entry["fromArg"]]
        data = value.encode("utf-8", "surrogateescape")
        if len(data) > _VALUE_BYTES_MAX:
            raise _refuse(
                f"{where}: the {source} has {len(data)} bytes, of which an option has"
                f" {_VALUE_BYTES_MAX} at most"
            )
        if data:
            yield code, data


def _requested(entries: Sequence[Json]) -> list[int]:
    found = []
    for index, entry in enumerate(entries):
        if entry.get("option"):
            found.append(_code(entry["option"], f"ipam.request[{index}]", _NOT_REQUESTED))
    if not any(entry.get("skipDefault") for entry in entries):
        found += _REQUESTED
    # RFC 3442: a server gives these routes only if they are asked for before all others.
    first = [code for code in (_SUBNET_MASK, _CLASSLESS_ROUTES) if code in found]
    return list(dict.fromkeys(first + found))


def _code(option: str, where: str, reserved: Sequence[int]) -> int:
    """Return the number of an option, given by its number or name."""
    if option in _NAMES:
        return _NAMES[option]
    if not (option.isascii() and option.isdigit() and len(option) <= 3 and int(option) <= 255):
        raise _refuse(
            f'{where}: there is no option "{option}": give a number from 1 to 254, or one of'
            f" {', '.join(_NAMES)}"
        )
    if int(option) in reserved:
        raise _refuse(f"{where}: option {int(option)} is the client's own; leave it out")
    return int(option)


def _refuse(text: str) -> CNIError:
    return CNIError(Code.INVALID_CONFIG, text)
