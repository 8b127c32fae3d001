"""A container's addresses in a zone of firewalld, by D-Bus."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from plugins.firewall.dbus import ADDRESS, Bus, DBusError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from cni_common.spec.names import Address

NAME = "org.fedoraproject.FirewallD1"
_PATH, _ZONES = "/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1.zone"
_NOBODY = (
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
)
_JUDGEMENT = f"{NAME}.Exception"  # of the arguments
_VARIABLE = "DBUS_SYSTEM_BUS_ADDRESS"
# The beginnings of firewalld's error messages (firewall/errors.py of its sources).
_HAS_IT = "ZONE_ALREADY_SET"
_HAS_IT_NOT = ("UNKNOWN_SOURCE", "NOT_ENABLED", "ZONE_CONFLICT", "INVALID_ZONE")


def is_running(environ: Mapping[str, str]) -> bool:
    """Tell whether firewalld is on the system's message bus."""
    try:
        with _bus(environ) as bus:
            return bus.has_owner(NAME)
    except (OSError, DBusError):
        return False


def add(environ: Mapping[str, str], zone: str, addresses: Collection[Address]) -> None:
    """Bind `addresses` to a zone, all or, where firewalld refuses one, none. Raises CNIError."""
    with _zones(environ) as call:
        added = []
        for address in addresses:
            try:
                call("addSource", zone, _source(address))
                added.append(address)
            except DBusError as error:
                if not str(error).startswith(_HAS_IT):
                    for one in added:
                        call("removeSource", zone, _source(one))
                    raise _failed(f"does not take {address} into '{zone}'", error) from None


def remove(environ: Mapping[str, str], zone: str, addresses: Collection[Address]) -> None:
    """Remove the sources of `add`; without a running firewalld there are none. Raises CNIError."""
    if not addresses or not is_running(environ):
        return
    with _zones(environ) as call:
        for address in addresses:
            try:
                call("removeSource", zone, _source(address))
            except DBusError as error:
                if not str(error).startswith(_HAS_IT_NOT):
                    raise _failed(f"keeps {address} in '{zone}'", error) from None


def missing(environ: Mapping[str, str], zone: str, addresses: Collection[Address]) -> Iterator[str]:
    """Yield each address that is not in the zone. Raises CNIError."""
    with _zones(environ) as call:
        for address in addresses:
            try:
                if not call("querySource", zone, _source(address)):
                    yield f"{address} is not in zone '{zone}' of firewalld"
            except DBusError as error:
                raise _failed(f"does not tell of zone '{zone}'", error) from None


@contextmanager
def _zones(environ: Mapping[str, str]) -> Iterator[Callable[..., object]]:
    """Yield a function that calls a method of firewalld's zones. Raises CNIError."""
    try:
        with _bus(environ) as bus:
            yield lambda member, *arguments: bus.call(NAME, _PATH, _ZONES, member, *arguments)
    except OSError as error:
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"firewalld cannot be reached by D-Bus: {error.strerror or error}; start it, or set"
            ' "backend" to another one',
        ) from None
    except DBusError as error:  # an error of the bus, such as too many connections
        raise _failed("cannot be reached", error) from None


def _bus(environ: Mapping[str, str]) -> Bus:
    return Bus(environ.get(_VARIABLE) or ADDRESS)


def _source(address: Address) -> str:
    return f"{address}/{address.max_prefixlen}"


def _failed(what: str, error: DBusError) -> CNIError:
    if error.name in _NOBODY:
        return CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            'firewalld is not on the message bus; start it, or set "backend" to another one',
        )
    # Of anything else than the arguments it says that it does not serve us.
    code = Code.INTERNAL if error.name == _JUDGEMENT else Code.PLUGIN_NOT_AVAILABLE
    return CNIError(code, f"firewalld {what}: {error}")
