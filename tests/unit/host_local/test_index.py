"""plugins/host_local/index/blocks.py: taken addresses, their owners, and those that rest."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_common.spec.names import Address
from plugins.host_local.index import blocks as module
from plugins.host_local.index.blocks import BLOCK, RESTING_MAX, FullError, Header, Index, header_for

BOOT = b"x" * 36
ZEROS = bytes(BLOCK)
NET4, NET6 = int(ip_address("10.1.0.0")), int(ip_address("fd00::"))


def made(capacity: int = 0) -> Index:
    """Return an empty index."""
    return Index(header_for(BOOT, capacity))


class Disk:
    """The blocks of an index that were written, and how many were read since."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}
        self.reads = 0

    def read(self, number: int) -> bytes:
        """Return a block."""
        self.reads += 1
        return self.blocks.get(number, ZEROS)

    def write(self, index: Index) -> None:
        """Write what has changed, after which the same process goes on."""
        self.blocks |= {0: index.header.pack(), **index.written}
        index.written.clear()

    def stored(self, index: Index) -> Index:
        """Return the index as another process reads it."""
        self.write(index)
        header = Header.parse(self.blocks[0])
        assert header is not None
        return Index(header, self.read)


def address(version: int, number: int) -> Address:
    """Return the address of a number behind the beginning of its test network."""
    return ip_address((NET4 if version == 4 else NET6) + number)


# Few addresses at the edges of the bitmaps, and few owners, so that operations meet.
ADDRESSES = st.builds(
    address, st.sampled_from([4, 6]), st.sampled_from([0, 1, 7, 8, 4095, 4096, 32767, 32768, 65535])
)
OWNERS = st.sampled_from(["a\r\neth0", "a\r\neth1", "b\r\neth0", "legacy", "c\udcff\r\neth0"])
STEPS = st.lists(st.tuples(st.sampled_from(["take", "free"]), ADDRESSES, OWNERS), max_size=30)


@given(STEPS)
def test_index_agrees_with_a_dictionary(steps: list[tuple[str, Address, str]]) -> None:
    """After any calls owners and free addresses are those of a plain dictionary."""
    disk = Disk()
    index = disk.stored(made())
    held: dict[Address, str] = {}
    for verb, where, owner in steps:
        if verb == "take" and where not in held:
            index.take(where, owner)
            held[where] = owner
        elif verb == "free" and where in held:
            index.free(where, held.pop(where))
        if len(held) % 3 == 0:
            index = disk.stored(index)
        elif len(held) % 3 == 1:
            disk.write(index)

    for owner in {owner for _, _, owner in steps}:
        assert set(index.addresses_of(owner) or ()) == {
            a for a, who in held.items() if who == owner
        }
    for version, base in ((4, NET4), (6, NET6)):
        taken = {int(where) for where in held if where.version == version}
        for first in (0, 1, 4095, 4096, 32767, 65535):
            lowest = next(n for n in range(base + first, base + 70000) if n not in taken)
            got = index.first_free(version, base + first, base + 70000, resting=False)
            assert got == lowest


@given(st.dictionaries(ADDRESSES, st.one_of(OWNERS, st.just("")), max_size=18))
def test_fill_does_what_take_does(held: dict[Address, str]) -> None:
    """An index that is made at once is the same as one that has grown."""
    grown, filled = made(), made()
    for where, owner in held.items():
        grown.take(where, owner)
    filled.fill(held.items())

    for owner in set(held.values()) - {""}:
        assert set(filled.addresses_of(owner) or ()) == set(grown.addresses_of(owner) or ())
    for where in [
        address(v, n) for v in (4, 6) for n in (0, 1, 7, 8, 4095, 4096, 32767, 32768, 65535)
    ]:
        number, version = int(where), where.version
        free = filled.first_free(version, number, number, resting=True)
        assert free == (None if where in held else number)


def test_one_free_address_in_a_full_range() -> None:
    """The last free address is found wherever the search begins, and then there is none."""
    index = made(1 << 16)
    index.fill((address(4, number), "") for number in range(1 << 16) if number != 40_000)

    assert index.first_free(4, NET4, NET4 + 65535, resting=False) == NET4 + 40_000
    assert index.first_free(4, NET4 + 40_001, NET4 + 65535, resting=False) is None
    index.take(address(4, 40_000))
    assert index.first_free(4, NET4, NET4 + 65535, resting=False) is None


def test_a_range_of_any_size() -> None:
    """A /64 costs one look where it is free, and the last number of all is no exception."""
    index = made()
    last = (1 << 128) - 1
    index.take(ip_address(last))

    assert index.first_free(6, NET6, NET6 + (1 << 64) - 1, resting=False) == NET6
    assert index.first_free(6, last - 1, last, resting=False) == last - 1
    assert index.first_free(6, last, last, resting=False) is None


def test_blocks_read_do_not_depend_on_what_is_stored() -> None:
    """An owner among 20,000 costs as many blocks as one among ten, but for a crowded bucket."""
    counts = []
    for size in (10, 20_000):
        index = made(1 << 16)
        index.fill((address(4, n), f"c{n}\r\neth0") for n in range(size))
        disk = Disk()
        index = disk.stored(index)
        assert index.addresses_of("c7\r\neth0") == [address(4, 7)]
        index.first_free(4, NET4 + size, NET4 + 65535, resting=False)
        counts.append(disk.reads)

    assert max(counts) <= 4


def test_pods() -> None:
    """A pod leads to its addresses until they are freed with its name."""
    index = made()
    index.take(address(4, 5), "c1\r\neth0", "uid eth0")
    index.take(address(6, 5), "c1\r\neth0", "uid eth0")

    assert index.addresses_of_pod("uid eth0") == [address(4, 5), address(6, 5)]
    assert index.addresses_of("uid eth0") == []
    index.free(address(4, 5), "c1\r\neth0", "uid eth0")
    assert index.addresses_of_pod("uid eth0") == [address(6, 5)]


def test_full_table() -> None:
    """A table without room says so; nothing that it has is lost."""
    index = made()
    count = 0

    def take_all() -> None:
        nonlocal count
        for number in range(1 << 16):
            index.take(address(4, number), f"c{number}")
            count += 1

    with pytest.raises(FullError):
        take_all()

    assert count > module.CAPACITY_MIN
    assert all(index.addresses_of(f"c{n}") == [address(4, n)] for n in range(count))


@pytest.mark.parametrize("at_once", [False, True])
def test_one_owner_of_many(at_once: bool) -> None:
    """An owner of any number of addresses takes no more room than one bucket search has."""
    index = made()
    many = [(address(4, number), "reserved") for number in range(600)]
    if at_once:
        index.fill(many)
    for where, owner in many:
        index.take(where, owner, "uid eth0")
    index.take(address(4, 600), "c1")

    assert index.addresses_of("reserved") is None
    assert index.addresses_of("c1") == [address(4, 600)]
    assert index.addresses_of_pod("uid eth0")
    for where, owner in many:
        index.free(where, owner, "uid eth0")
    assert index.addresses_of("reserved") is None  # until the index is made anew
    assert index.first_free(4, NET4, NET4 + 700, resting=False) == NET4


def test_rest() -> None:
    """A resting address is free for an ADD that names it, and for all when its time has come."""
    index = made()
    for number in (2, 3):
        index.rest(address(4, number), until_ns=100 * number)

    def search(*, resting: bool) -> int | None:
        return index.first_free(4, NET4 + 2, NET4 + 9, resting=resting)

    assert (search(resting=False), search(resting=True)) == (NET4 + 4, NET4 + 2)
    index.expire(199)
    assert search(resting=False) == NET4 + 4
    index.expire(200)
    assert (search(resting=False), index.resting(9)) == (NET4 + 2, [(address(4, 3), 300)])
    index.expire(10**9)
    assert index.resting(9) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50)), max_size=60))
def test_rests_end_in_time(rests: list[tuple[int, int]]) -> None:
    """In any order of rests each address wakes at the end of its last one."""
    index, ends = made(), dict[int, int]()
    for number, until_ns in rests:
        index.rest(address(4, number), until_ns)
        ends[number] = until_ns

    for now_ns in (0, 10, 25, 49, 50):
        index.expire(now_ns)
        awake = {number for number in range(10) if ends.get(number, 0) <= now_ns}
        assert awake == {
            number
            for number in range(10)
            if index.first_free(4, NET4 + number, NET4 + number, resting=False)
        }
    assert index.resting() == []


def test_rest_is_bounded() -> None:
    """The queue keeps the latest; those that it drops are free."""
    index = made()
    for number in range(RESTING_MAX + 3):
        index.rest(address(4, number), until_ns=10**9)

    assert index.resting() == [(address(4, 3), 10**9)]
    assert index.first_free(4, NET4, NET4 + RESTING_MAX, resting=False) == NET4
    assert index.first_free(4, NET4 + 3, NET4 + RESTING_MAX, resting=False) is None


def test_rests_anew() -> None:
    """A rest that begins anew costs at most a look at each block of the queue."""
    disk = Disk()
    index = made()
    for number in range(RESTING_MAX):
        index.rest(address(4, number), until_ns=10**9)
    index = disk.stored(index)
    disk.reads = 0

    anew = (0, 8000, RESTING_MAX - 1)
    for number in anew:
        index.rest(address(4, number), until_ns=10**9 + 1)

    assert disk.reads < 3 * RESTING_MAX // 16 + 200
    index.expire(10**9)
    for _ in range(RESTING_MAX):
        index.expire(10**9)
    assert index.resting(9) == [(address(4, n), 10**9 + 1) for n in anew]


@pytest.mark.parametrize("data", [b"", ZEROS, b"pycni", b"\xff" * BLOCK])
def test_foreign_header(data: bytes) -> None:
    """Other files are not taken for an index."""
    assert Header.parse(data) is None


@given(st.binary(min_size=BLOCK, max_size=BLOCK))
def test_damaged_blocks(data: bytes) -> None:
    """With any content of a block, answers are wrong at worst."""
    header = header_for(BOOT, 0)
    header.tail, header.bitmaps = 3, 1
    index = Index(header, lambda _: data)

    assert all(isinstance(one.version, int) for one in index.addresses_of("c1\r\neth0") or ())
    index.first_free(4, NET4, NET4 + 255, resting=False)
    index.expire(1 << 63)
    index.free(address(4, 2), "c1\r\neth0")
