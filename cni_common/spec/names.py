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

_TEXTS = 256  # addresses of which is remembered what they mean: one ADD meets each several times
VERSION = "0.1.0"  # of the suite, as in pyproject.toml
OLDEST_VERSION = "0.1.0"  # what an absent cniVersion means
CURRENT_VERSION = "1.1.0"
SUPPORTED_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", CURRENT_VERSION)

IFNAME_MAX_BYTES = 15  # IFNAMSIZ of linux/if.h, less its terminating NUL
# What Go's unicode.IsSpace accepts; str.isspace would also take U+001C to U+001F.
_SPACES = "\t\n\v\f\r \u0085\u00a0\u1680\u2028\u2029\u202f\u205f\u3000"
_NOT_IN_IFNAME = frozenset("/:%" + _SPACES) | frozenset(map(chr, range(0x2000, 0x200B)))
_ALNUM = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_IDENTIFIER = _ALNUM | frozenset("_.-")


def check_identifier(value: str, what: str, code: int) -> None:
    """Raise CNIError unless `value` is a container id or network name as SPEC.md allows them."""
    if not value or value[0] not in _ALNUM or not _IDENTIFIER.issuperset(value):
        raise CNIError(
            code,
            f"invalid {what}: it must be a letter or digit followed by letters, digits, '_', '.'"
            " or '-'",
            f"{what}: {value}",
        )


def check_ifname(value: str, what: str, code: int) -> None:
    """Raise CNIError unless `value` can be the name of a network interface (dev_valid_name).

    The kernel would take one that is not UTF-8, but no result can name it.
    """
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise CNIError(code, f"{what} {value!r} is not UTF-8") from None
    if size > IFNAME_MAX_BYTES:
        raise CNIError(
            code, f"{what} is too long", f"{value!r} has more than {IFNAME_MAX_BYTES} bytes"
        )
    # The kernel takes % for a pattern to make a name from; all and default are of its sysctls.
    if value in ("", ".", "..", "all", "default") or not _NOT_IN_IFNAME.isdisjoint(value):
        raise CNIError(
            code,
            f"{what} {value!r} is not an interface name: '.', '..', 'all', 'default', '/', ':',"
            " '%', white space and the empty string are not allowed",
        )


@lru_cache(_TEXTS)
def parse_address(text: str) -> Address:
    """Return the address `text` as Go's net.ParseIP reads it; ValueError where Go has nil."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    address = ip_address(text)
    return (address.version == 6 and address.ipv4_mapped) or address


@lru_cache(_TEXTS)
def parse_cidr(text: str) -> Cidr:
    """Return address and prefix length of `text` as Go's net.ParseCIDR reads it, or ValueError."""
    host, _, prefix = text.partition("/")
    if not (prefix.isascii() and prefix.isdigit()) or "%" in host:
        raise ValueError(f"{text!r} is not an address with a prefix length, such as 10.0.0.2/24")
    cidr = ip_interface(text)
    if cidr.version == 6 and cidr.ip.ipv4_mapped:
        if cidr.network.prefixlen < 96:
            raise ValueError(f"{text!r} covers more than the IPv4-mapped addresses")
        return IPv4Interface((cidr.ip.ipv4_mapped, cidr.network.prefixlen - 96))
    return cidr


def version_tuple(version: str) -> tuple[int, int, int]:
    """Return the three numbers of a spec version; missing ones are 0. Raises CNIError 6."""
    parts = (version or OLDEST_VERSION).split(".")
    if len(parts) > 3 or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
        raise CNIError(
            Code.DECODING_FAILURE, f'cniVersion "{version}" is not a version such as 1.0.0'
        )
    numbers = [int(part) for part in parts] + [0, 0]
    return (numbers[0], numbers[1], numbers[2])


# Versions of one family differ by their name alone; prevResult and configuration share one.
FAMILIES = (("0.1.0", "0.2.0"), ("0.3.0", "0.3.1", "0.4.0"), ("1.0.0", CURRENT_VERSION))
