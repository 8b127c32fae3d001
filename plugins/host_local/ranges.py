"""Ranges of addresses: checks, defaults, and the search for a free address. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import Address, Subnet, parse_address, parse_cidr
from cni_common.spec.result import ADDRESSES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence
    from typing import TypeVar

    from cni_common.spec.wire import Json

    Search = Callable[[int, int], int | None]
    T = TypeVar("T", int, tuple[int, ...])

_OCTETS = tuple(map(str, range(256)))
HOST_BITS_MIN = 2  # a /31 or /127 has no address left beside network, broadcast and gateway


@dataclass(frozen=True, slots=True)
class Range:
    """The addresses `first` to `last`, both inclusive, of one subnet."""

    subnet: Subnet
    first: Address
    last: Address
    gateway: Address  # of the subnet's family, but not necessarily inside it

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class RangeSet:
    """Ranges of one family that form one pool; an attachment gets one address of it."""

    ranges: Sequence[Range]

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.ranges[0].subnet.version

    def range_of(self, address: Address) -> Range | None:
        """Return the range that contains `address`, gateways included."""
        if address.version == self.version:
            number = int(address)
            for one in self.ranges:
                if int(one.first) <= number <= int(one.last):
                    return one
        return None

    @property
    def gateways(self) -> frozenset[int]:
        """The gateways of all ranges, which are never given out."""
        return frozenset(int(one.gateway) for one in self.ranges)

    @property
    def size(self) -> int:
        """The number of addresses that can be given out."""
        gateways = sorted(self.gateways)
        pieces = [(int(one.first), int(one.last)) for one in self.ranges]
        return sum(
            last - first + 1 - len(_between(gateways, first, last)) for first, last in pieces
        )

    def pick(self, first_free: Search, after: Address | None) -> Address | None:
        """Return the first free address behind `after`, cyclically; None if there is none.

        The search begins at the first range if `after` is outside of the set; `after` itself comes
        last. `first_free` returns the first free number between two, both inclusive.
        """
        gateways = sorted(self.gateways)
        for first, last in self._pieces(after):
            start = first
            for end in (*_between(gateways, first, last), last + 1):
                number = first_free(start, end - 1) if start < end else None
                if number is not None:
                    return self._family(number)
                start = end + 1
        return None

    def addresses(self) -> Iterator[Address]:
        """Yield every address that can be given out."""
        gateways = self.gateways
        numbers = (one for first, last in self._pieces(None) for one in range(first, last + 1))
        return (self._family(one) for one in numbers if one not in gateways)

    @property
    def _family(self) -> type[Address]:
        return type(self.ranges[0].first)

    def _pieces(self, after: Address | None) -> Iterator[tuple[int, int]]:
        here = self.range_of(after) if after is not None else None
        if after is None or here is None:
            for one in self.ranges:
                yield int(one.first), int(one.last)
            return
        start = self.ranges.index(here)
        yield int(after) + 1, int(here.last)
        for one in (*self.ranges[start + 1 :], *self.ranges[:start]):
            yield int(one.first), int(one.last)
        yield int(here.first), int(after)


class Locator:
    """Finds the range set of an address, in time that hardly grows with the number of ranges."""

    def __init__(self, sets: Sequence[RangeSet]) -> None:
        """`sets` do not overlap, as those of parse_sets."""
        self._spans = sorted(
            (one.subnet.version, int(one.first), int(one.last), index)
            for index, range_set in enumerate(sets)
            for one in range_set.ranges
        )

    def index_of(self, address: Address) -> int | None:
        """Return the index of the set whose ranges contain `address`, gateways included."""
        after = _position(self._spans, (address.version, int(address) + 1))
        version, first, last, index = self._spans[after - 1] if after else (0, 0, 0, 0)
        return index if version == address.version and first <= int(address) <= last else None


def unused(taken: Container[int]) -> Search:
    """Return a search for numbers that are not in `taken`."""

    def search(first: int, last: int) -> int | None:
        return next((one for one in range(first, last + 1) if one not in taken), None)

    return search


def unlisted(names: frozenset[str], version: int) -> Search:
    """Return a search for numbers whose addresses are not in `names`."""

    def search6(first: int, last: int) -> int | None:
        numbers = range(first, last + 1)
        return next((one for one in numbers if str(IPv6Address(one)) not in names), None)

    def search4(first: int, last: int) -> int | None:
        # A /24 at a time, ten times as fast as one by one: a range may have 65,000 addresses.
        while first <= last:
            end = min(first | 255, last)
            prefix = f"{first >> 24}.{first >> 16 & 255}.{first >> 8 & 255}."
            texts = [prefix + octet for octet in _OCTETS[first & 255 : (end & 255) + 1]]
            if not names.issuperset(texts):
                return first + next(n for n, text in enumerate(texts) if text not in names)
            first = end + 1
        return None

    return search4 if version == 4 else search6


def parse_sets(sets: Sequence[Sequence[Json]], *, several_per_family: bool) -> tuple[RangeSet, ...]:
    """Return the range sets of a configuration, completed by the defaults.

    `several_per_family`: whether the result can carry two addresses of one family, as from 0.3.0
    on. Raises CNIError 7 that names the range set by its index.
    """
    if not sets:
        raise CNIError(
            Code.INVALID_CONFIG, "no IP ranges specified: give ipam.subnet or ipam.ranges"
        )
    if len(sets) > ADDRESSES_MAX:
        raise CNIError(
            Code.INVALID_CONFIG,
            f"{len(sets)} range sets are specified, {ADDRESSES_MAX} are possible: an attachment"
            " gets an address of each; to have a larger pool, put more ranges into one set",
        )
    parsed = tuple(_parse_set(index, entries) for index, entries in enumerate(sets))
    if not several_per_family and len({one.version for one in parsed}) < len(parsed):
        raise CNIError(
            Code.INVALID_CONFIG,
            "cniVersion below 0.3.0 does not support more than one range set per address family;"
            " use cniVersion 0.3.0 or newer",
        )
    overlap = _overlap([(index, one) for index, of in enumerate(parsed) for one in of.ranges])
    if overlap:
        (earlier, _), (later, _) = overlap
        raise CNIError(
            Code.INVALID_CONFIG,
            f"range set {earlier} overlaps with {later}: {parsed[earlier]} and {parsed[later]}",
        )
    return parsed


def gateways_outside(sets: Sequence[RangeSet]) -> list[str]:
    """Return a log line for each gateway outside of its subnet: accepted, but unusual."""
    return [
        f"range set {index}: gateway {one.gateway} is outside of subnet {one.subnet}"
        for index, range_set in enumerate(sets)
        for one in range_set.ranges
        if one.gateway not in one.subnet
    ]


def _parse_set(index: int, entries: Sequence[Json]) -> RangeSet:
    try:
        if not entries:
            raise ValueError('empty range set, expected [{"subnet": "10.0.0.0/24"}]')
        ranges = tuple(map(_parse_range, entries))
        if len({one.subnet.version for one in ranges}) > 1:
            raise ValueError(
                "mixed address families; give IPv4 and IPv6 a range set each: "
                + ", ".join(str(one.subnet) for one in ranges)
            )
        overlap = _overlap(list(enumerate(ranges)))
        if overlap:
            raise ValueError(f"subnets {overlap[0][1]} and {overlap[1][1]} overlap")
    except ValueError as error:
        raise CNIError(Code.INVALID_CONFIG, f"invalid range set {index}: {error}") from None
    return RangeSet(ranges)


def _parse_range(entry: Json) -> Range:
    return _range_of(
        *(entry.get(key, "") for key in ("subnet", "rangeStart", "rangeEnd", "gateway"))
    )


@lru_cache(maxsize=128)  # an engine has few networks, and a request for each of their containers
def _range_of(subnet_text: str, start: str, end: str, gateway_text: str) -> Range:
    subnet = _parse_subnet(subnet_text)
    network = int(subnet.network_address)
    address_type = type(subnet.network_address)
    gateway = _parse_member(gateway_text, "gateway") or address_type(network + 1)
    if gateway.version != subnet.version:
        raise ValueError(f"gateway {gateway} is not of the address family of subnet {subnet}")
    first = _parse_member(start, "rangeStart") or address_type(network + 1)
    if first not in subnet:
        raise ValueError(f"rangeStart {first} is not in network {subnet}")
    last = _parse_member(end, "rangeEnd")
    if last is None:
        # An IPv6 subnet has no broadcast address to be left out.
        last = address_type(int(subnet.broadcast_address) - (subnet.version == 4))
    if last not in subnet:
        raise ValueError(f"rangeEnd {last} is not in network {subnet}")
    if int(first) > int(last):
        raise ValueError(f"rangeStart {first} is above rangeEnd {last}")
    return Range(subnet, first, last, gateway)


def _parse_subnet(text: str) -> Subnet:
    if not text:
        raise ValueError('a range has no subnet, expected such as "subnet": "10.0.0.0/24"')
    try:
        cidr = parse_cidr(text)
    except ValueError:
        raise ValueError(f'subnet "{text}" is not a network such as 10.0.0.0/24') from None
    subnet = cidr.network
    if subnet.version == 4 and ":" in text:
        raise ValueError(f'subnet "{text}" is IPv4 in the notation of IPv6, write {subnet}')
    if subnet.max_prefixlen - subnet.prefixlen < HOST_BITS_MIN:
        raise ValueError(
            f"network {cidr} too small to allocate from, the prefix length must be"
            f" {subnet.max_prefixlen - HOST_BITS_MIN} or less"
        )
    if cidr.ip != subnet.network_address:
        raise ValueError(f'subnet "{text}" has host bits set, the network is {subnet}')
    return subnet


def _parse_member(text: str, key: str) -> Address | None:
    if not text:
        return None
    try:
        return parse_address(text)
    except ValueError:
        raise ValueError(f'{key} "{text}" is not an IP address such as 10.0.0.10') from None


def _overlap(
    ranges: Sequence[tuple[int, Range]],
) -> tuple[tuple[int, Range], tuple[int, Range]] | None:
    """Return two of the numbered ranges that overlap, the lower number first; in n log n steps."""
    widest: tuple[int, Range] | None = None
    for one in sorted(ranges, key=lambda one: (one[1].subnet.version, int(one[1].first))):
        if widest is None or widest[1].subnet.version != one[1].subnet.version:
            widest = one
        elif int(one[1].first) <= int(widest[1].last):
            return (widest, one) if widest[0] <= one[0] else (one, widest)
        elif int(one[1].last) > int(widest[1].last):
            widest = one
    return None


def _between(numbers: Sequence[int], first: int, last: int) -> Sequence[int]:
    """Return those of the sorted `numbers` that are `first` to `last`, both inclusive."""
    return numbers[_position(numbers, first) : _position(numbers, last + 1)]


def _position(ordered: Sequence[T], least: T) -> int:
    """Return how many members of `ordered` are below `least` (bisect costs an import)."""
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] < least:
            low = middle + 1
        else:
            high = middle
    return low
