"""Names, addresses and versions of the CNI specification."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
)

from cni_common.spec.errors import CNIError, Code

Address = IPv4Address | IPv6Address
Cidr = IPv4Interface | IPv6Interface
Subnet = IPv4Network | IPv6Network

_TEXTS = 256  # parsed addresses kept in each cache: an ADD parses the same text several times
VERSION = "0.2.0"  # of the suite: all else takes it from here
OLDEST_VERSION = "0.1.0"  # the meaning of an absent cniVersion
CURRENT_VERSION = "1.1.0"
SUPPORTED_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", CURRENT_VERSION)

IFNAME_MAX_BYTES = 15  # IFNAMSIZ of linux/if.h, less its terminating NUL
# The spaces of Go's unicode.IsSpace; str.isspace also accepts U+001C to U+001F.
_SPACES = "\t\n\v\f\r \u0085\u00a0\u1680\u2028\u2029\u202f\u205f\u3000"
_NOT_IN_IFNAME = frozenset("/:%" + _SPACES) | frozenset(map(chr, range(0x2000, 0x200B)))
_ALNUM = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_IDENTIFIER = _ALNUM | frozenset("_.-")


def check_identifier(value: str, what: str, code: int) -> None:
    """Raise CNIError `code` unless `value` is a valid container id or network name.

    SPEC.md sections 1 and 2 give the syntax; `what` names the value in the message.
    """
    if not value or value[0] not in _ALNUM or not _IDENTIFIER.issuperset(value):
        raise CNIError(
            code,
            f"invalid {what}: it must be a letter or digit followed by letters, digits, '_', '.'"
            " or '-'",
            f"{what}: {value}",
        )


def is_whole(text: str) -> bool:
    """Tell whether the kernel and a path take all of `text`: a NUL would end it there."""
    return "\0" not in text


def is_absolute(path: str) -> bool:
    """Tell whether `path` is absolute, and whole."""
    return path.startswith("/") and is_whole(path)


def check_ifname(value: str, what: str, code: int) -> None:
    """Raise CNIError `code` unless `value` can name a network interface.

    The rules are those of the kernel's dev_valid_name, at most IFNAME_MAX_BYTES. The kernel accepts
    names that are not UTF-8, but no result can carry such a name. `what` names the value in the
    message.
    """
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise CNIError(code, f"{what} {value!r} is not UTF-8") from None
    if size > IFNAME_MAX_BYTES:
        raise CNIError(
            code, f"{what} is too long", f"{value!r} has more than {IFNAME_MAX_BYTES} bytes"
        )
    # The kernel treats % as a name pattern; all and default are directories of its sysctls.
    odd = value in ("", ".", "..", "all", "default") or not is_whole(value)
    if odd or not _NOT_IN_IFNAME.isdisjoint(value):
        raise CNIError(
            code,
            f"{what} {value!r} is not an interface name: '.', '..', 'all', 'default', '/', ':',"
            " '%', white space, NUL and the empty string are not allowed",
        )


@lru_cache(_TEXTS)
def parse_address(text: str) -> Address:
    """Return the address `text` as Go's net.ParseIP reads it. Raises ValueError if Go has nil."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    address = ip_address(text)
    return (address.version == 6 and address.ipv4_mapped) or address


def _interface(text: str, host: str, prefix: str) -> Cidr:
    """Return what ip_interface makes of `text`, in half its time: it reads the address twice."""
    try:
        if ":" in host:
            return IPv6Interface((int(IPv6Address(host)), int(prefix)))
        return IPv4Interface((int(IPv4Address(host)), int(prefix)))
    except ValueError:
        return ip_interface(text)  # for its words


@lru_cache(_TEXTS)
def parse_cidr(text: str) -> Cidr:
    """Return address and prefix of `text` as Go's net.ParseCIDR reads it. Raises ValueError."""
    host, _, prefix = text.partition("/")
    if not (prefix.isascii() and prefix.isdigit()) or "%" in host:
        raise ValueError(f"{text!r} is not an address with a prefix length, such as 10.0.0.2/24")
    cidr = _interface(text, host, prefix)
    if cidr.version == 6 and cidr.ip.ipv4_mapped:
        if cidr.network.prefixlen < 96:
            raise ValueError(f"{text!r} covers more than the IPv4-mapped addresses")
        return IPv4Interface((cidr.ip.ipv4_mapped, cidr.network.prefixlen - 96))
    return cidr


def version_tuple(version: str) -> tuple[int, int, int]:
    """Return the three numbers of a spec version; a missing number is 0. Raises CNIError 6."""
    parts = (version or OLDEST_VERSION).split(".")
    if len(parts) > 3 or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
        raise CNIError(
            Code.DECODING_FAILURE, f'cniVersion "{version}" is not a version such as 1.0.0'
        )
    numbers = [int(part) for part in parts] + [0, 0]
    return (numbers[0], numbers[1], numbers[2])


# Versions of one family have the same layout of results. prevResult and configuration must be of
# one family.
FAMILIES = (("0.1.0", "0.2.0"), ("0.3.0", "0.3.1", "0.4.0"), ("1.0.0", CURRENT_VERSION))
