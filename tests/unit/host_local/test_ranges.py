"""plugins/host_local/ranges.py: what a range is, and which address comes next."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cni_common.spec.errors import CNIError, Code
from plugins.host_local.ranges import RangeSet, gateways_outside, parse_sets, unlisted, unused

Entry = dict[str, Any]


def parse(*sets: list[Entry], several_per_family: bool = True) -> tuple[RangeSet, ...]:
    return parse_sets(sets, several_per_family=several_per_family)


@pytest.mark.parametrize(
    ("entry", "first", "last", "gateway", "size"),
    [
        ({"subnet": "10.0.0.0/24"}, "10.0.0.1", "10.0.0.254", "10.0.0.1", 253),
        ({"subnet": "10.0.0.0/30"}, "10.0.0.1", "10.0.0.2", "10.0.0.1", 1),
        ({"subnet": "fd00::/126"}, "fd00::1", "fd00::3", "fd00::1", 2),
        ({"subnet": "fd00::/64"}, "fd00::1", "fd00::ffff:ffff:ffff:ffff", "fd00::1", 2**64 - 2),
        ({"subnet": "10.0.0.0/24", "gateway": ""}, "10.0.0.1", "10.0.0.254", "10.0.0.1", 253),
        (
            {"subnet": "10.0.0.0/24", "gateway": "::ffff:10.0.0.9"},
            "10.0.0.1",
            "10.0.0.254",
            "10.0.0.9",
            253,
        ),
        (
            {"subnet": "10.0.0.0/24", "gateway": "10.9.9.9"},
            "10.0.0.1",
            "10.0.0.254",
            "10.9.9.9",
            254,
        ),
        (
            {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.0", "rangeEnd": "10.0.0.255"},
            "10.0.0.0",
            "10.0.0.255",
            "10.0.0.1",
            255,
        ),
        (
            {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.7", "rangeEnd": "10.0.0.7"},
            "10.0.0.7",
            "10.0.0.7",
            "10.0.0.1",
            1,
        ),
    ],
    ids=lambda value: str(value.get("subnet")) if isinstance(value, dict) else None,
)
def test_defaults(entry: Entry, first: str, last: str, gateway: str, size: int) -> None:
    """A range is completed as the reference implementation completes it."""
    (range_set,) = parse([entry])

    (one,) = range_set.ranges
    assert (str(one.first), str(one.last), str(one.gateway)) == (first, last, gateway)
    assert range_set.size == size


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], "no IP ranges specified"),
        ([[]], "invalid range set 0: empty range set"),
        ([[{"subnet": "10.0.0.0/24"}], [{}]], "invalid range set 1: a range has no subnet"),
        ([[{"subnet": "10.0.0/24"}]], 'subnet "10.0.0/24" is not a network'),
        ([[{"subnet": "10.0.0.0"}]], 'subnet "10.0.0.0" is not a network'),
        ([[{"subnet": "10.0.0.0/255.0.0.0"}]], "is not a network"),
        ([[{"subnet": "10.0.0.0/31"}]], "too small to allocate from, the prefix length must be 30"),
        ([[{"subnet": "fd00::/127"}]], "too small to allocate from, the prefix length must be 126"),
        ([[{"subnet": "::ffff:10.0.0.0/120"}]], "IPv4 in the notation of IPv6, write 10.0.0.0/24"),
        ([[{"subnet": "10.0.0.1/24"}]], "host bits set, the network is 10.0.0.0/24"),
        ([[{"subnet": "10.0.0.0/24", "gateway": "x"}]], 'gateway "x" is not an IP address'),
        ([[{"subnet": "10.0.0.0/24", "gateway": "fd00::1"}]], "not of the address family"),
        (
            [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.0"}]],
            "rangeStart 10.0.1.0 is not in network 10.0.0.0/24",
        ),
        ([[{"subnet": "10.0.0.0/24", "rangeStart": "fd00::1"}]], "rangeStart fd00::1 is not in"),
        ([[{"subnet": "10.0.0.0/24", "rangeEnd": "10.0.1.0"}]], "rangeEnd 10.0.1.0 is not in"),
        (
            [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}]],
            "rangeStart 10.0.0.9 is above rangeEnd 10.0.0.8",
        ),
        ([[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]], "mixed address families"),
        (
            [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/25"}]],
            "subnets 10.0.0.1-10.0.0.254 and 10.0.0.1-10.0.0.126 overlap",
        ),
        (
            [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.128/25"}]],
            "range set 0 overlaps with 1",
        ),
    ],
)
def test_refused(sets: list[list[Entry]], message: str) -> None:
    """Each mistake is refused by one line that names the range set and what would be right."""
    with pytest.raises(CNIError) as caught:
        parse(*sets)

    assert caught.value.code == Code.INVALID_CONFIG
    assert message in caught.value.msg
    assert "\n" not in caught.value.msg


def test_one_set_per_family_before_0_3_0() -> None:
    """Old results have room for one address of each family."""
    sets: list[list[Entry]] = [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]

    assert len(parse(*sets, several_per_family=False)) == 2
    with pytest.raises(CNIError, match="use cniVersion 0"):
        parse(*sets, [{"subnet": "10.0.1.0/24"}], several_per_family=False)


def test_slices_of_one_subnet() -> None:
    """Ranges of a set may share a subnet, and no gateway of the set is given away."""
    (range_set,) = parse(
        [
            {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.10", "rangeEnd": "10.0.0.11"},
            {
                "subnet": "10.0.0.0/24",
                "rangeStart": "10.0.0.4",
                "rangeEnd": "10.0.0.5",
                "gateway": "10.0.0.10",
            },
        ]
    )

    assert str(range_set) == "10.0.0.10-10.0.0.11,10.0.0.4-10.0.0.5"
    assert [str(one) for one in range_set.addresses()] == ["10.0.0.11", "10.0.0.4", "10.0.0.5"]


def test_gateways_outside() -> None:
    """A gateway outside of its subnet is worth a line in the log."""
    sets = parse([{"subnet": "10.0.0.0/24", "gateway": "10.1.0.1"}], [{"subnet": "fd00::/64"}])

    assert gateways_outside(sets) == [
        "range set 0: gateway 10.1.0.1 is outside of subnet 10.0.0.0/24"
    ]


def test_other_family_is_outside() -> None:
    """An address of the other family is in no range, even where the numbers agree."""
    (range_set,) = parse([{"subnet": "0.0.0.0/24"}])

    assert range_set.range_of(ip_address("::5")) is None
    assert range_set.pick(unused(frozenset()), ip_address("::5")) == ip_address("0.0.0.2")


@st.composite
def range_sets(draw: st.DrawFn) -> RangeSet:
    """Sets of up to four small ranges that do not overlap, with and without gateways inside."""
    version = draw(st.sampled_from([4, 6]))
    base = "10.0.0.0/26" if version == 4 else "fd00::/122"
    network = ip_network(base)
    offsets = st.integers(0, network.num_addresses - 1)
    bounds = sorted(draw(st.sets(offsets, min_size=2, max_size=8)))
    entries = []
    for low, high in zip(bounds[::2], bounds[1::2], strict=False):
        entry = {"subnet": base, "rangeStart": str(network[low]), "rangeEnd": str(network[high])}
        if draw(st.booleans()):
            entry["gateway"] = str(network[draw(offsets)])
        entries.append(entry)
    return parse(draw(st.permutations(entries)))[0]


@given(range_sets(), st.data())
def test_pick_is_round_robin(range_set: RangeSet, data: st.DataObject) -> None:
    """`pick` agrees with a walk over the written-out list, from every position."""
    pool = [
        number for one in range_set.ranges for number in range(int(one.first), int(one.last) + 1)
    ]
    low, high = min(pool) - 2, max(pool) + 2
    taken = data.draw(st.sets(st.integers(low, high)))
    after = data.draw(st.none() | st.integers(low, high))
    start = pool.index(after) + 1 if after in pool else 0
    walk = pool[start:] + pool[:start]
    gateways = {int(one.gateway) for one in range_set.ranges}

    family = type(range_set.ranges[0].first)
    picked = range_set.pick(unused(taken), None if after is None else family(after))

    free = [number for number in walk if number not in taken and number not in gateways]
    assert picked == (family(free[0]) if free else None)
    assert range_set.size == len(set(pool) - gateways)


@given(range_sets())
def test_pick_gives_each_address_once(range_set: RangeSet) -> None:
    """Picking until there is none left gives the whole pool, each address once."""
    taken: list[int] = []
    last = None
    while (last := range_set.pick(unused(taken), last)) is not None:
        assert range_set.range_of(last) is not None
        taken.append(int(last))

    assert len(taken) == len(set(taken)) == range_set.size


@given(st.integers(8, 32), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_any_subnet(length: int, number: int, bound: int) -> None:
    """A subnet is accepted exactly when it is a network with room for an address."""
    text = f"{IPv4Address(number)}/{length}"
    network = IPv4Network(text, strict=False)
    good = network.network_address == IPv4Address(number) and length <= 30
    entry = {"subnet": text, "rangeStart": str(IPv4Address(bound))}
    assume(IPv4Address(bound) != network.broadcast_address)

    if good and IPv4Address(bound) in network:
        assert str(parse([entry])[0].ranges[0].first) == str(IPv4Address(bound))
    else:
        with pytest.raises(CNIError):
            parse([entry])


@given(
    st.sampled_from([IPv4Address("10.1.0.250"), IPv4Address("0.0.0.0"), IPv6Address("fd00::")]),
    st.sets(st.integers(0, 600)),
    st.integers(0, 600),
    st.integers(0, 600),
)
def test_search_by_names(
    base: IPv4Address | IPv6Address, taken: set[int], first: int, length: int
) -> None:
    """A search by the names of leases finds what a search by numbers finds."""
    names = frozenset(str(base + number) for number in taken)
    start = int(base) + first

    by_names = unlisted(names, base.version)(start, start + length)

    assert by_names == unused({int(base) + n for n in taken})(start, start + length)


@pytest.mark.parametrize("missing", [None, 0, 255, 256, 40_000, 65_535])
def test_search_by_names_in_a_full_network(missing: int | None) -> None:
    """In a full /16 the one address without a lease is found, or none."""
    base = IPv4Address("10.1.0.0")
    names = frozenset(str(base + n) for n in range(1 << 16) if n != missing)

    found = unlisted(names, 4)(int(base), int(base) + 65_535)

    assert found == (None if missing is None else int(base) + missing)


def test_huge_pool_is_searched_at_once() -> None:
    """The size of an IPv6 pool does not matter."""
    (range_set,) = parse([{"subnet": "fd00::/16"}])

    assert range_set.pick(unused({int(ip_address("fd00::2"))}), None) == ip_address("fd00::3")


def test_thousands_of_ranges_cost_no_square_of_their_number() -> None:
    """Overlaps are found, and an address is picked, in a second of CPU for 3,000 ranges."""
    entries = [{"subnet": f"10.{number >> 8}.{number & 255}.0/24"} for number in range(3_000)]
    started = time.process_time()

    (pool,) = parse_sets([entries], several_per_family=True)
    free = pool.pick(unused(set()), None)
    with pytest.raises(CNIError, match="overlap"):
        parse_sets([[*entries, {"subnet": "10.5.30.0/25"}]], several_per_family=True)

    assert (pool.size, str(free)) == (3_000 * 253, "10.0.0.2")
    assert time.process_time() - started < 10  # it took minutes
