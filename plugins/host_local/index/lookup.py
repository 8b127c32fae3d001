"""The index of an open store: loaded or rebuilt at the first query, written back at the end."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from plugins.host_local.index.blocks import CAPACITY_MAX, NO_ADDRESS, FullError, Index, header_for
from plugins.host_local.index.file import IndexFile, Remembered, boot_id, booted_ns
from plugins.host_local.lease import RELEASE_COOLDOWN_MAX, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Protocol, Self, TypeVar

    from cni_common.spec.names import Address
    from cni_common.spec.request import Attachment
    from plugins.host_local.lease import Lease
    from plugins.host_local.ranges import RangeSet

    T = TypeVar("T")

    class LeaseDirectory(Protocol):
        """The interface of a lease directory to its index; `host_local.store.Store` has it."""

        @property
        def descriptor(self) -> int:
            """The open directory."""

        def disk(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            """Make one system call on the directory or the index."""

        def leases(self) -> list[Lease]:
            """Return all leases."""

        def lease(self, address: Address) -> Lease | None:
            """Return the lease of `address`, None if it is free."""

        def inodes(self) -> dict[str, int]:
            """Return the inode of each name in the directory."""

        def tidy(self, names: Iterable[str]) -> None:
            """Remove those of `names` that are leftovers of killed calls."""

        def unlock(self) -> None:
            """Release the lock."""

        def relock(self) -> None:
            """Wait for the lock."""


_DOUBLINGS_MAX = 6  # of the capacity; one suffices for any possible number of leases
_NEW, _DRAFT = "new", "draft.new"  # suffixes of files made under the lock, and without it


class Lookup:
    """The index in one call; every method except `seems_free` needs the directory's lock.

    A failure of the index does not fail the call: the call continues with an index in memory, made
    from the leases.
    """

    def __init__(
        self,
        file: IndexFile | None,
        scan: Callable[[], list[Lease]],
        log: Callable[[str], object],
        capacity: int,
    ) -> None:
        """`file` is None if no file can be kept; `scan` returns all leases."""
        self._file = file
        self._scan = scan
        self._log = log
        self._capacity = min(capacity, CAPACITY_MAX)
        self._index: Index | None = None

    @classmethod
    def at(
        cls,
        leases: LeaseDirectory,
        place: str,
        *,
        log: Callable[[str], object],
        capacity: int,
    ) -> Self:
        """Return the index of `leases`, kept below the directory `place`, "" keeps it in memory."""
        file = IndexFile(leases.descriptor, place, leases.disk) if place else None
        return cls(file, leases.leases, log, capacity)

    def close(self, *, seal: bool, changed: bool) -> None:
        """Close the file; write the index back if it is up to date (`seal`) and `changed`."""
        try:
            if self._file and self._index is not None and changed and seal:
                self._file.seal(self._index)
        except OSError as error:
            self._give_up(error)
        finally:
            if self._file:
                self._file.close()

    def open(self) -> None:
        """Load or rebuild the index."""
        self._query(lambda index: index.header)

    def addresses_of(self, owner: Attachment) -> list[Address]:
        """Return the addresses that `owner` seems to have, those without ifname included."""
        texts = dict.fromkeys((text_of(owner), owner.containerid))
        found = [self._query(partial(Index.addresses_of, owner=text)) for text in texts]
        if None in found:
            leases = [one for one in self._scan() if one.owner and text_of(one.owner) in texts]
            return [lease.address for lease in leases]
        return list(dict.fromkeys(address for some in found for address in some or ()))

    def addresses_of_pod(self, pod: str) -> list[Address]:
        """Return the addresses that attachments of `pod` seem to have."""
        return self._query(lambda index: index.addresses_of_pod(pod))

    def next_free(self, range_set: RangeSet, after: Address | None) -> Address | None:
        """Return the next address that seems free; a resting one only if there is no other."""

        def question(index: Index) -> Address | None:
            if index.header.head != index.header.tail:
                index.expire(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
            for resting in (False, True):
                search = partial(index.first_free, range_set.version, resting=resting)
                address = range_set.pick(search, after)
                if address is not None:
                    return address
            return None

        return self._query(question)

    def seems_free(self, range_set: RangeSet) -> bool:
        """Tell whether an up-to-date index has a free address of `range_set`. Needs no lock."""
        try:
            index = self._file.load() if self._file else None
            if index is None or self._file is None:
                return False
            search = partial(index.first_free, range_set.version, resting=True)
            return range_set.pick(search, None) is not None and self._file.is_fresh()
        except OSError:
            return False

    def booted_ns(self) -> int:
        """Return the earliest clock reading of this boot's beginning, ns since the epoch."""
        return self._query(lambda index: index.header.booted_ns)

    def taken(self, address: Address, owner: Attachment, pod: str, former: Lease | None) -> None:
        """Note that `owner`, of `pod`, has `address`, in place of the lease `former`."""

        def note(index: Index) -> None:
            index.free(address, text_of(former.owner) if former and former.owner else "", pod)
            index.take(address, text_of(owner), pod)

        self._query(note)

    def freed(self, lease: Lease, pod: str, rest_seconds: int) -> None:
        """Note that `lease` is freed, and that its address rests for `rest_seconds`."""

        def note(index: Index) -> None:
            index.free(lease.address, text_of(lease.owner) if lease.owner else "", pod)
            if rest_seconds:
                # A clock that cannot be set, and that continues while the node is suspended.
                now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                index.rest(lease.address, now_ns + rest_seconds * 10**9)

        self._query(note)

    def rebuild(self) -> None:
        """Rebuild the index from the leases."""
        stamp = self.stamp()  # first: later changes by other programs show
        leases = self._scan()
        index = self._made([(o.address, text_of(o.owner) if o.owner else "") for o in leases])
        self._index = self._saved(index, lambda file: file.save(index, stamp))

    # For the module rebuild, which works without the lock; a method that needs it says so.

    def is_stale(self) -> bool:
        """Tell whether a file can be kept but is missing or stale. Needs the lock."""
        if self._index is None and self._file:
            self._file.close()  # another file may have replaced it by now
        self._index = self._index or self._load()
        return self._index is None and self._file is not None

    def rebuild_lock(self) -> int:
        """Return a descriptor whose flock admits one process at a time to a rebuild, or -1."""
        try:
            return self._file.rebuild_lock() if self._file else -1
        except OSError as error:
            self._give_up(error)
            return -1

    def stamp(self) -> int:
        """Set the directory's time as IndexFile.stamp does, and return it; 0 without a file.

        Needs the lock.
        """
        try:
            return self._file.stamp() if self._file else 0
        except OSError as error:
            self._give_up(error)
            return 0

    def is_unchanged(self, stamp: int) -> bool:
        """Tell whether the directory is unchanged since `stamp`. Needs the lock."""
        return bool(stamp and self._file and self._file.time_of_directory() == stamp)

    def draft(self, leases: Sequence[tuple[Address, str]]) -> Index:
        """Return a new, unused index of `leases`, each with its owner's text."""
        index = self._made(leases)
        return self._saved(index, lambda file: file.draft(index, _DRAFT))

    def adopt(self, index: Index, changes: Callable[[Index], object]) -> None:
        """Use a draft from now on, after `changes` to it. Needs the lock."""
        try:
            changes(index)
        except (FullError, OSError):
            self.rebuild()
            return
        stamp = self.stamp()
        self._index = self._saved(index, lambda file: file.adopt(index, stamp, _DRAFT))

    def forget(self) -> None:
        """Discard the index, which was found wrong."""
        self._index = None
        if self._file:
            try:
                self._file.forget()
            except OSError as error:
                self._give_up(error)

    def _query(self, question: Callable[[Index], T]) -> T:
        """Return the answer of the index; a stale or damaged index is rebuilt first."""
        self._index = self._index or self._load()
        for _ in range(_DOUBLINGS_MAX):
            if self._index is None:
                self.rebuild()
            assert self._index is not None, "rebuild() sees to it"
            try:
                return question(self._index)
            except FullError:
                self._capacity = max(2 * self._capacity, 8 * self._index.header.buckets)
            except OSError as error:
                self._give_up(error)
            self._index = None
        raise FullError

    def _load(self) -> Index | None:
        try:
            return self._file.load() if self._file else None
        except OSError as error:
            self._give_up(error)
            return None

    def _made(self, leases: Sequence[tuple[Address, str]]) -> Index:
        """Return an index in memory, with the rests and pods of the old file."""
        try:
            old = self._file.remembered() if self._file else Remembered()
        except OSError:
            old = Remembered()
        capacity = max(self._capacity, 2 * len(leases))
        now_booted_ns = booted_ns()
        earliest_ns = min(old.booted_ns or now_booted_ns, now_booted_ns)
        # A damaged file may have too many pods; the index works without them.
        pods = old.pods if len(old.pods) <= capacity else ()
        for _ in range(_DOUBLINGS_MAX):
            index = Index(header_for(boot_id(), capacity, earliest_ns))
            try:
                index.fill(leases)
                index.add_pods(pods)
                _rest(index, old.resting)
                break
            except FullError:
                capacity *= 2
        return index

    def _saved(self, index: Index, save: Callable[[IndexFile], Index]) -> Index:
        """Return the index in the file, or in memory if the file cannot be written."""
        if self._file is None:
            return index
        whole = dict(index.written)
        try:
            return save(self._file)
        except OSError as error:
            self._give_up(error)
            index.written = whole
            return index

    def _give_up(self, error: OSError) -> None:
        """Continue without a file. A remaining file is stale, or is removed."""
        file, self._file = self._file, None
        if file is None:
            return
        self._log(f"host-local: goes on without an index: {error.strerror}: {file.path}")
        try:
            file.forget()
        except OSError:
            file.close()


def _rest(index: Index, resting: Iterable[tuple[Address, int]]) -> None:
    # A damaged file may hold any time; no rest is longer than this.
    latest_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + RELEASE_COOLDOWN_MAX * 10**9
    for address, until_ns in resting:
        if until_ns <= latest_ns and address != NO_ADDRESS:
            index.rest(address, until_ns)
