"""The layout of an index of leases, in which every query takes constant time. Pure.

An index consists of blocks of 512 bytes: a header; a queue of addresses that rest after their
release; a hash table; and bitmaps. The table maps an owner or a pod to addresses, and a part of the
address space to its bitmap. Blocks that were never written are zero, so the file has holes.

The index is not the truth: a caller reads the lease's file before it acts, and discards a wrong
index.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import TYPE_CHECKING

from cni_common.spec.names import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

BLOCK = 512
CAPACITY_MIN, CAPACITY_MAX = 256, 1 << 16  # leases that a new index has room for
RESTING_MAX = 1 << 14  # resting addresses; the earliest to end are dropped

_MAGIC = b"pycni\0\0\3"
_HEADER = Struct("<8s36sIIQQq")
_BITS = 8 * BLOCK
# A bitmap has 32,768 addresses, half a /16; its zero blocks are holes.
_PART_BLOCKS = 8
_PART_BITS = _PART_BLOCKS * _BITS
# An entry of the table: key, kind (0: none), value. The first byte of a bucket is 1 if an entry had
# to go to the next bucket.
_ENTRY = Struct("<16sB16s")
_KEY_SIZE = 16
_BUCKET_HEAD = 8
_PER_BUCKET = (BLOCK - _BUCKET_HEAD) // _ENTRY.size
_BUCKETS_PER_SEARCH = 32
_RESTING = Struct("<QB16s7x")
_PER_QUEUE_BLOCK = BLOCK // _RESTING.size
_QUEUE_BLOCKS = RESTING_MAX // _PER_QUEUE_BLOCK
_TABLE = 1 + _QUEUE_BLOCKS
# The kinds of an entry: 4 and 6 for an owner's addresses, plus _OF_POD for a pod's. _MANY: the
# owner has more addresses than the table notes; one owner could fill the buckets of a search.
_BITMAP, _MANY, _OF_POD = 1, 2, 16
_PER_KEY_MAX = 8 * _PER_BUCKET
_OF_POD_KINDS = (4 + _OF_POD, 6 + _OF_POD)
_TAKEN, _RESTS = b"taken", b"rests"
NO_ADDRESS = IPv6Address(0)  # in the queue, replaces an address that rests anew
_EXPIRED_PER_CALL = 64
_KNOWN_MAX = 64  # blocks in memory beside the changed ones
_ZEROS, _ONES = bytes(BLOCK), b"\xff" * BLOCK


class FullError(Exception):
    """The table is full: the index must be rebuilt with more room."""


@dataclass(slots=True)
class Header:
    """The first block of an index."""

    boot_id: bytes  # 36 bytes, of the boot during which the index was made
    buckets: int
    bitmaps: int = 0
    head: int = 0  # entries that have left the queue
    tail: int = 0  # entries that have entered the queue
    booted_ns: int = 0  # the earliest clock reading of the boot's beginning, since the epoch

    @classmethod
    def parse(cls, data: bytes) -> Header | None:
        """Return the header in the first block, None if the block is no header."""
        if len(data) != BLOCK:
            return None
        magic, boot_id, buckets, bitmaps, head, tail, booted_ns = _HEADER.unpack_from(data)
        sound = magic == _MAGIC and buckets > 0 and 0 <= tail - head <= RESTING_MAX
        return cls(boot_id, buckets, bitmaps, head, tail, booted_ns) if sound else None

    @property
    def table(self) -> tuple[int, int]:
        """The table's first block, and the first block behind it."""
        return _TABLE, _TABLE + self.buckets

    def pack(self) -> bytes:
        """Return the first block."""
        fields = (self.boot_id, self.buckets, self.bitmaps, self.head, self.tail, self.booted_ns)
        return _HEADER.pack(_MAGIC, *fields).ljust(BLOCK, b"\0")


def header_for(boot_id: bytes, capacity: int, booted_ns: int = 0) -> Header:
    """Return the header of an empty index with room for `capacity` leases."""
    # Half full if every lease has an owner and a pod.
    capacity = max(capacity, CAPACITY_MIN)
    return Header(boot_id, -(-4 * capacity // _PER_BUCKET), booted_ns=booted_ns)


class Index:
    """An index whose blocks come from `read`; changed blocks are kept in `written`."""

    def __init__(self, header: Header, read: Callable[[int], bytes] = lambda _: _ZEROS) -> None:
        """`read` returns the block of a number, zeros for a block that was never written."""
        self.header = header
        self.written: dict[int, bytes] = {}
        self._read = read
        self._known: dict[int, bytes] = {}  # blocks that were read: a call needs some of them often
        self._bitmaps: dict[tuple[bytes, int, int], int] = {}

    def take(self, address: Address, owner: str = "", pod: str = "") -> None:
        """Note that `owner`, unknown if "", has `address`. Raises FullError."""
        self._mark(_TAKEN, address, on=True)
        for key, kind in _entries(address, owner, pod):
            found = self._find(key)
            if (kind, int(address).to_bytes(16, "big")) not in found and not _has_many(found):
                is_full = len(found) >= _PER_KEY_MAX
                self._insert(key, _MANY if is_full else kind, int(address))

    def fill(self, leases: Iterable[tuple[Address, str]]) -> None:
        """Call `take` for each address and owner, faster, in an empty index. Raises FullError."""
        bitmaps: dict[tuple[int, int], bytearray] = {}
        buckets: dict[int, list[bytes]] = {}
        counts: dict[bytes, int] = {}
        for address, owner in leases:
            number = int(address)
            part, bit = divmod(number, _PART_BITS)
            bits = bitmaps.setdefault((address.version, part), bytearray(_PART_BITS // 8))
            bits[bit // 8] |= 1 << bit % 8
            if owner:
                key = _key(b"owner", owner)
                count = counts[key] = counts.get(key, 0) + 1
                if count <= _PER_KEY_MAX + 1:
                    kind = address.version if count <= _PER_KEY_MAX else _MANY
                    entry = _ENTRY.pack(key, kind, number.to_bytes(16, "big"))
                    buckets.setdefault(self._bucket(key), []).append(entry)
        # A bucket at a time, ten times as fast as an entry at a time; few buckets overflow.
        for bucket, entries in buckets.items():
            data = bytes(_BUCKET_HEAD) + b"".join(entries[:_PER_BUCKET])
            self._put(_TABLE + bucket, data.ljust(BLOCK, b"\0"))
        for (version, part), bits in bitmaps.items():
            block = self._add_bitmap(_TAKEN, version, part)
            for step in range(_PART_BLOCKS):
                piece = bytes(bits[step * BLOCK : (step + 1) * BLOCK])
                if piece != _ZEROS:
                    self._put(block + step, piece)
        for entries in buckets.values():
            for entry in entries[_PER_BUCKET:]:
                self._insert_entry(entry)

    def free(self, address: Address, owner: str = "", pod: str = "") -> None:
        """Note that `address` is free, and remove it from `owner` and `pod`. Raises FullError."""
        self._mark(_TAKEN, address, on=False)
        for key, kind in _entries(address, owner, pod):
            self._delete(key, kind, int(address))

    def addresses_of(self, owner: str) -> list[Address] | None:
        """Return the addresses that `owner` seems to have; None for _MANY: read all leases."""
        found = self._find(_key(b"owner", owner))
        return None if _has_many(found) else [_address(*one) for one in found if one[0] in (4, 6)]

    def addresses_of_pod(self, pod: str) -> list[Address]:
        """Return the addresses that attachments of `pod` seem to have."""
        found = self._find(_key(b"pod", pod))
        return [_address(kind - _OF_POD, value) for kind, value in found if kind in _OF_POD_KINDS]

    def add_pods(self, pods: Iterable[bytes]) -> None:
        """Insert the entries that `pods_in` found in another index, for addresses in use.

        Raises FullError.
        """
        for entry in pods:
            _, kind, value = _ENTRY.unpack(entry)
            if self._is_marked(_TAKEN, _address(kind - _OF_POD, value)):
                self._insert_entry(entry)

    def first_free(self, version: int, first: int, last: int, *, resting: bool) -> int | None:
        """Return the lowest number from `first` to `last` that seems to be free, None for none.

        With `resting` a resting address counts as free.
        """
        which = (_TAKEN,) if resting or self.header.head == self.header.tail else (_TAKEN, _RESTS)
        while first <= last:
            part = first // _PART_BITS
            end = min(last, (part + 1) * _PART_BITS - 1)
            found = [block for one in which if (block := self._bitmap(one, version, part))]
            number = self._free_in_part(found, first, end)
            if number is not None:
                return number
            first = end + 1
        return None

    def _free_in_part(self, bitmaps: Sequence[int], first: int, last: int) -> int | None:
        while first <= last:
            block, low = divmod(first % _PART_BITS, _BITS)
            pieces = [self._get(bitmap + block) for bitmap in bitmaps]
            if _ONES not in pieces:
                taken = 0
                for piece in pieces:
                    taken |= int.from_bytes(piece, "little")
                high = min(last - first + low, _BITS - 1)
                free = ~taken >> low & (1 << high - low + 1) - 1
                if free:
                    return first + (free & -free).bit_length() - 1
            first += _BITS - low
        return None

    def rest(self, address: Address, until_ns: int) -> None:
        """Let `address` rest until `until_ns` of CLOCK_BOOTTIME. Raises FullError."""
        if self._is_marked(_RESTS, address):
            self._forget_rest(address)
        if self.header.tail - self.header.head >= RESTING_MAX:
            self._end_first_rest()
        position = self.header.tail
        # Ordered by time: only a rest shorter than the last ones moves before them.
        while position > self.header.head and self._resting_at(position - 1)[1] > until_ns:
            self._set_resting(position, *self._resting_at(position - 1))
            position -= 1
        self._set_resting(position, address, until_ns)
        self.header.tail += 1
        self._mark(_RESTS, address, on=True)

    def expire(self, now_ns: int) -> None:
        """End the rests that are over at `now_ns`, at most _EXPIRED_PER_CALL of them."""
        for _ in range(_EXPIRED_PER_CALL):
            if self.header.head == self.header.tail or self.resting()[0][1] > now_ns:
                return
            self._end_first_rest()

    def resting(self, count: int = 1) -> list[tuple[Address, int]]:
        """Return up to `count` resting addresses and the ends of their rests, earliest first."""
        end = min(self.header.head + count, self.header.tail)
        return [self._resting_at(position) for position in range(self.header.head, end)]

    def _end_first_rest(self) -> None:
        ((address, _),) = self.resting()
        self.header.head += 1
        self._mark(_RESTS, address, on=False)

    def _forget_rest(self, address: Address) -> None:
        """Replace the earlier rest of `address` in the queue by one of NO_ADDRESS."""
        wanted = _RESTING.pack(0, address.version, int(address).to_bytes(16, "big"))[8:]
        first = self.header.head - self.header.head % _PER_QUEUE_BLOCK
        # Block by block: the queue can have many blocks, and other calls wait for the lock.
        for start in range(first, self.header.tail, _PER_QUEUE_BLOCK):
            data = self._get(self._place(start)[0])
            at = data.find(wanted)
            while at >= 0:
                position, offset = start + at // _RESTING.size, at % _RESTING.size
                if offset == 8 and self.header.head <= position < self.header.tail:
                    self._set_resting(position, NO_ADDRESS, self._resting_at(position)[1])
                    return
                at = data.find(wanted, at + 1)

    def _resting_at(self, position: int) -> tuple[Address, int]:
        block, offset = self._place(position)
        until_ns, version, number = _RESTING.unpack_from(self._get(block), offset)
        return _address(version, number), until_ns

    def _set_resting(self, position: int, address: Address, until_ns: int) -> None:
        block, offset = self._place(position)
        data = bytearray(self._get(block))
        number = int(address).to_bytes(16, "big")
        _RESTING.pack_into(data, offset, until_ns, address.version, number)
        self._put(block, bytes(data))

    def _place(self, position: int) -> tuple[int, int]:
        block, entry = divmod(position % RESTING_MAX, _PER_QUEUE_BLOCK)
        return 1 + block, entry * _RESTING.size

    # Bitmaps.

    def _mark(self, which: bytes, address: Address, *, on: bool) -> None:
        part, bit = divmod(int(address), _PART_BITS)
        bitmap = self._bitmap(which, address.version, part)
        if bitmap is None:
            if not on:
                return
            bitmap = self._add_bitmap(which, address.version, part)
        block = bitmap + bit // _BITS
        data = bytearray(self._get(block))
        mask = 1 << bit % 8
        byte = bit % _BITS // 8
        data[byte] = data[byte] | mask if on else data[byte] & ~mask
        self._put(block, bytes(data))

    def _is_marked(self, which: bytes, address: Address) -> bool:
        part, bit = divmod(int(address), _PART_BITS)
        bitmap = self._bitmap(which, address.version, part)
        if bitmap is None:
            return False
        return bool(self._get(bitmap + bit // _BITS)[bit % _BITS // 8] >> bit % 8 & 1)

    def _bitmap(self, which: bytes, version: int, part: int) -> int | None:
        """Return the first block of a bitmap, None if there is none."""
        known = self._bitmaps.get((which, version, part))
        if known is not None:
            return known
        for kind, value in self._find(_key(which, f"{version} {part}")):
            number = int.from_bytes(value, "big")
            if kind == _BITMAP and number < self.header.bitmaps:
                return self._note_bitmap(which, version, part, number)
        return None

    def _add_bitmap(self, which: bytes, version: int, part: int) -> int:
        number = self.header.bitmaps
        self._insert(_key(which, f"{version} {part}"), _BITMAP, number)
        self.header.bitmaps += 1
        return self._note_bitmap(which, version, part, number)

    def _note_bitmap(self, which: bytes, version: int, part: int, number: int) -> int:
        block = _TABLE + self.header.buckets + number * _PART_BLOCKS
        self._bitmaps[which, version, part] = block  # at most as many as the index has
        return block

    # The table.

    def _find(self, key: bytes) -> list[tuple[int, bytes]]:
        found = []
        for _, data in self._chain(key):
            for offset in _offsets(data, key):
                _, kind, value = _ENTRY.unpack_from(data, offset)
                if kind:
                    found.append((kind, value))
        return found

    def _insert(self, key: bytes, kind: int, number: int) -> None:
        self._insert_entry(_ENTRY.pack(key, kind, number.to_bytes(16, "big")))

    def _insert_entry(self, entry: bytes) -> None:
        start = self._bucket(entry)
        for step in range(min(_BUCKETS_PER_SEARCH, self.header.buckets)):
            block = _TABLE + (start + step) % self.header.buckets
            data = bytearray(self._get(block))
            for offset in range(_BUCKET_HEAD, BLOCK - _ENTRY.size + 1, _ENTRY.size):
                if not data[offset + _KEY_SIZE]:
                    data[offset : offset + _ENTRY.size] = entry
                    self._put(block, bytes(data))
                    return
            data[0] = 1
            self._put(block, bytes(data))
        raise FullError

    def _delete(self, key: bytes, kind: int, number: int) -> None:
        entry = _ENTRY.pack(key, kind, number.to_bytes(16, "big"))
        for block, data in self._chain(key):
            for offset in _offsets(data, entry):
                empty = bytes(_ENTRY.size)
                self._put(block, data[:offset] + empty + data[offset + _ENTRY.size :])
                return

    def _chain(self, key: bytes) -> list[tuple[int, bytes]]:
        """Return the blocks that may hold entries of `key`."""
        found = []
        start = self._bucket(key)
        for step in range(min(_BUCKETS_PER_SEARCH, self.header.buckets)):
            block = _TABLE + (start + step) % self.header.buckets
            data = self._get(block)
            found.append((block, data))
            if not data[0]:
                break
        return found

    def _bucket(self, key: bytes) -> int:
        return int.from_bytes(key[:8], "big") % self.header.buckets

    def _get(self, block: int) -> bytes:
        data = self.written.get(block) or self._known.get(block)
        if data is None:
            data = self._read(block)
            if len(self._known) < _KNOWN_MAX:
                self._known[block] = data
        return data

    def _put(self, block: int, data: bytes) -> None:
        self.written[block] = data
        if block in self._known:
            self._known[block] = data


def pods_in(blocks: bytes) -> Iterator[bytes]:
    """Yield the entries of pods in blocks of a table, for `Index.add_pods`."""
    for start in range(0, len(blocks) - BLOCK + 1, BLOCK):
        if blocks.startswith(_ZEROS, start):
            continue
        for offset in range(start + _BUCKET_HEAD, start + BLOCK - _ENTRY.size + 1, _ENTRY.size):
            if blocks[offset + _KEY_SIZE] in _OF_POD_KINDS:
                yield blocks[offset : offset + _ENTRY.size]


def _key(kind: bytes, text: str) -> bytes:
    from hashlib import sha256

    return sha256(kind + b" " + text.encode("utf-8", "surrogateescape")).digest()[:_KEY_SIZE]


def _entries(address: Address, owner: str, pod: str) -> list[tuple[bytes, int]]:
    """Return key and kind of each entry that leads to `address`."""
    of_owner = [(_key(b"owner", owner), address.version)] if owner else []
    of_pod = [(_key(b"pod", pod), address.version + _OF_POD)] if pod else []
    return of_owner + of_pod


def _has_many(found: Sequence[tuple[int, bytes]]) -> bool:
    return any(kind == _MANY for kind, _ in found)


def _offsets(data: bytes, wanted: bytes) -> list[int]:
    """Return the offsets of a bucket's entries that begin with `wanted`."""
    found = []
    at = data.find(wanted, _BUCKET_HEAD)
    while at >= 0:
        if (at - _BUCKET_HEAD) % _ENTRY.size == 0 and at + _ENTRY.size <= BLOCK:
            found.append(at)
        at = data.find(wanted, at + 1)
    return found


def _address(version: int, number: bytes) -> Address:
    value = int.from_bytes(number, "big")
    return IPv4Address(value & 0xFFFFFFFF) if version == 4 else IPv6Address(value)
