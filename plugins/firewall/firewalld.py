"""A container's addresses in a zone of firewalld, by D-Bus."""

from cni_common.errors import CNIError, Code
from plugins.firewall.dbus import ADDRESS, Bus, DBusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cni_common.types import Address

NAME = "org.fedoraproject.FirewallD1"
_PATH, _ZONES = "/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1.zone"
_VARIABLE = "DBUS_SYSTEM_BUS_ADDRESS"
# How the messages of firewalld's errors begin, firewall/errors.py of its sources.
_HAS_IT, _HAS_IT_NOT = "ZONE_ALREADY_SET", ("UNKNOWN_SOURCE", "NOT_ENABLED")


def is_running(environ: "Mapping[str, str]") -> bool:
    """Tell whether firewalld is on the system's message bus."""
    try:
        with _bus(environ) as bus:
            return bus.has_owner(NAME)
    except (OSError, DBusError):
        return False


def add(environ: "Mapping[str, str]", zone: str, addresses: "Collection[Address]") -> None:
    """Bind `addresses` to a zone. Raises CNIError."""
    for address in addresses:
        try:
            _call(environ, "addSource", zone, _source(address))
        except DBusError as error:
            if not str(error).startswith(_HAS_IT):
                raise _failed(f"firewalld does not take {address} into '{zone}'", error) from None


def remove(environ: "Mapping[str, str]", zone: str, addresses: "Collection[Address]") -> None:
    """Take back what `add` did; a firewalld that does not run has nothing. Raises CNIError."""
    if not is_running(environ):
        return
    for address in addresses:
        try:
            _call(environ, "removeSource", zone, _source(address))
        except DBusError as error:
            if not str(error).startswith(_HAS_IT_NOT):
                raise _failed(f"firewalld keeps {address} in '{zone}'", error) from None


def missing(environ: "Mapping[str, str]", zone: str, addresses: "Collection[Address]") -> str:
    """Return what is not in the zone, "" for nothing. Raises CNIError."""
    for address in addresses:
        try:
            if not _call(environ, "querySource", zone, _source(address)):
                return f"{address} is not in zone '{zone}' of firewalld"
        except DBusError as error:
            raise _failed(f"firewalld does not tell of zone '{zone}'", error) from None
    return ""


def _call(environ: "Mapping[str, str]", member: str, *arguments: str) -> object:
    try:
        with _bus(environ) as bus:
            return bus.call(NAME, _PATH, _ZONES, member, *arguments)
    except OSError as error:
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"firewalld cannot be reached by D-Bus: {error.strerror or error}; start it, or set"
            ' "backend" to another one',
        ) from None


def _bus(environ: "Mapping[str, str]") -> Bus:
    return Bus(environ.get(_VARIABLE) or ADDRESS)


def _source(address: "Address") -> str:
    return f"{address}/{address.max_prefixlen}"


def _failed(what: str, error: DBusError) -> CNIError:
    return CNIError(Code.INTERNAL, f"{what}: {error}")
