"""The owner of each port of the node, on disk: a living container keeps it also without a rule.

Other programs may flush the ruleset; and a range and a port inside of it are elements of two maps,
where the kernel does not see that they meet. So each port has a slot, found by its number: a look
costs the same with any number of other attachments.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.node.journal import OddFileError, make_private_directory, open_file, refuse_shared
from cni_common.node.record import Lock
from plugins.portmap.conf import PLUGIN, PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from cni_common.node.record import Record, Records

    Check = Callable[[Record, str], bool]

_SLOT_BYTES = 32  # the two digests in the name of a record's file
_PORTS = 1 << 16
_FILE_BYTES = len(PROTOCOLS) * _PORTS * _SLOT_BYTES
_CHUNK = 1 << 20  # bytes
_ANY = {4: "0.0.0.0", 6: "::"}  # every address of the node


@dataclass(frozen=True, slots=True)
class HostPortsFacts:
    """Ports of the node that lead to the container."""

    PART = "host-ports"
    backend: str = ""  # nftables or iptables
    ports: Sequence[Sequence[str | int]] = ()  # protocol, port, address or "", IP version of each
    # Map, key, data and last key of each element, all but the map in hexadecimal.
    elements: Sequence[Sequence[str]] = ()
    chains: Sequence[str] = ()  # that elements lead to
    suffix: str = ""  # of the maps of the network's conditions
    waiting: Sequence[Sequence[str]] = ()  # network, interface: get the ports when this one goes
    ranges: Sequence[Sequence[str | int]] = ()  # protocol, first, last, address or "", IP version


@dataclass(frozen=True, slots=True)
class Span:
    """Ports in a row of one protocol, at one address of the node or at all."""

    space: str  # the address, and the suffix of the maps: two spaces have nothing in common
    protocol: str
    first: int
    last: int

    def common(self, other: Span) -> Span | None:
        """Return the ports that both have, None if there are none."""
        first, last = max(self.first, other.first), min(self.last, other.last)
        same = (self.space, self.protocol) == (other.space, other.protocol)
        return Span(self.space, self.protocol, first, last) if same and first <= last else None

    def __str__(self) -> str:
        address = self.space.partition("-")[0]
        where = "" if address in _ANY.values() else f" of {address}"
        if self.first == self.last:
            return f"host port {self.first}/{self.protocol}{where}"
        return f"host ports {self.first}-{self.last}/{self.protocol}{where}"


def spans_of(facts: HostPortsFacts) -> list[Span]:
    """Return the ports that a record tells about."""
    single = ((protocol, port, port, at, v) for protocol, port, at, v in facts.ports)
    return [
        Span(f"{at or _ANY[int(version)]}{facts.suffix}", str(protocol), int(first), int(last))
        for protocol, first, last, at, version in (*single, *facts.ranges)
    ]


class Claims:
    """The slots of all ports: of each space a file, which is as sparse as its ports.

    The records stay the truth: a slot counts if the record that it names has the port. Without the
    files they are made anew from all records.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._directory = f"{os.path.dirname(records.directory)}/hostports"

    def take(self, record: Record, check: Check) -> None:
        """Enter `record` as the owner of its ports.

        `check` is called for each other record that has some of them, with their description: True
        leaves them there, False gives them to `record`. Raises the errors of `check`, OSError.
        """
        spans, own = _spans(record), _slot_of(record)
        checked: dict[bytes, bool] = {own: False, bytes(_SLOT_BYTES): False}
        with Lock(self._records):
            self._make(record)
            with _Slots(self._directory) as table:
                entries = [(span, table.read(span)) for span in spans]
                for span, slots in entries:
                    for slot in set(slots) - checked.keys():
                        checked[slot] = self._is_kept(slot, span, check)
                for span, slots in entries:
                    table.write(span, [slot if checked[slot] else own for slot in slots])

    def release(
        self, record: Record, successors: Sequence[Record], is_idle: Callable[[], bool]
    ) -> None:
        """Give the ports of `record` back, or to those of `successors` that want them.

        `is_idle` tells whether no port is mapped: then the files go once they are empty.
        """
        empty, own = bytes(_SLOT_BYTES), _slot_of(record)
        with Lock(self._records):
            if not os.path.isdir(self._directory):
                return
            # Of calls that cross, the last has to see that the others are done.
            idle = is_idle()
            if idle and self._is_alone(record):
                _remove(self._directory)
                return
            with _Slots(self._directory) as table:
                table.replace(_spans(record), own, empty)
                for one in successors:
                    table.replace(_spans(one), empty, _slot_of(one))
            if idle and _is_empty(self._directory):
                _remove(self._directory)

    def owners(self, record: Record) -> set[str]:
        """Return the paths of the records that have ports of `record`, its own among them."""
        with Lock(self._records):
            if not os.path.isdir(self._directory):
                return set()
            with _Slots(self._directory) as table:
                slots = {slot for span in _spans(record) for slot in table.read(span)}
        return {_path_of(self._records, slot) for slot in slots - {bytes(_SLOT_BYTES)}}

    def _is_alone(self, record: Record) -> bool:
        names = [one for one in os.listdir(self._records.directory) if PLUGIN in one]
        return names == [os.path.basename(record.path)]

    def _is_kept(self, slot: bytes, span: Span, check: Check) -> bool:
        """Tell whether ports stay with the record of `slot`: it has them, and `check` says so."""
        other = self._records.peek(_path_of(self._records, slot))
        if other and other.damage:  # the slot says what the record does not
            return check(other, str(span))
        common = [one.common(span) for one in _spans(other)] if other else []
        found = next((one for one in common if one), None)
        return other is not None and found is not None and check(other, str(found))

    def _make(self, record: Record) -> None:
        """Make the files from the records unless they are there; `record` is not yet entered."""
        try:
            refuse_shared(self._directory)
        except FileNotFoundError:
            new = f"{self._directory}.new"
            _remove(new)  # left by a kill
            make_private_directory(new)
            with _Slots(new) as table:
                for one in self._records.of_plugin(PLUGIN):
                    if one.path != record.path:
                        table.replace(_spans(one), bytes(_SLOT_BYTES), _slot_of(one))
            os.rename(new, self._directory)


class _Slots:
    """The open files of the slots."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._files: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._files.values():
            os.close(fd)

    def read(self, span: Span) -> list[bytes]:
        """Return the slots of some ports."""
        size = (span.last - span.first + 1) * _SLOT_BYTES
        data = os.pread(self._file(span), size, _offset(span)).ljust(size, bytes(1))
        return [data[at : at + _SLOT_BYTES] for at in range(0, size, _SLOT_BYTES)]

    def write(self, span: Span, slots: Sequence[bytes]) -> None:
        """Set the slots of some ports. Raises OSError."""
        data = b"".join(slots)
        if os.pwrite(self._file(span), data, _offset(span)) != len(data):
            raise OSError(errno.ENOSPC, "no space left for the owners of ports")

    def replace(self, spans: Sequence[Span], old: bytes, new: bytes) -> None:
        """Set those slots of some ports that are `old` to `new`."""
        for span in spans:
            try:
                slots = self.read(span)
            except OddFileError:
                continue  # nothing is written there
            if old in slots:
                self.write(span, [new if slot == old else slot for slot in slots])

    def _file(self, span: Span) -> int:
        if span.space not in self._files:
            path = f"{self._directory}/{span.space}"
            try:
                self._files[span.space] = open_file(path, os.O_RDWR)
            except FileNotFoundError:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._files[span.space] = os.open(path, flags, 0o600)
        return self._files[span.space]


def _spans(record: Record) -> list[Span]:
    facts = record.get(HostPortsFacts)
    return spans_of(facts) if facts else []


def _slot_of(record: Record) -> bytes:
    return bytes.fromhex(os.path.basename(record.path).removeprefix(PLUGIN).replace("-", ""))


def _path_of(records: Records, slot: bytes) -> str:
    network, owner = slot[: _SLOT_BYTES // 2].hex(), slot[_SLOT_BYTES // 2 :].hex()
    return f"{records.directory}/{PLUGIN}-{network}-{owner}"


def _offset(span: Span) -> int:
    number = list(PROTOCOLS).index(span.protocol)
    return (number * _PORTS + span.first) * _SLOT_BYTES


def _is_empty(directory: str) -> bool:
    """Tell whether no file of slots in the directory has an owner in it."""
    for name in os.listdir(directory):
        try:
            fd = open_file(f"{directory}/{name}", os.O_RDONLY)
        except OddFileError:
            continue  # nothing is written there
        try:
            chunks = (os.pread(fd, _CHUNK, at) for at in range(0, _FILE_BYTES, _CHUNK))
            if any(chunk.strip(bytes(1)) for chunk in chunks):
                return False
        finally:
            os.close(fd)
    return True


def _remove(directory: str) -> None:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        os.unlink(f"{directory}/{name}")
    os.rmdir(directory)
