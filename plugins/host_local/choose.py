"""The choice of an ADD's addresses, or the reason for its failure; the caller claims them."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_interface
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code, listed
from cni_common.spec.names import Address, Cidr
from plugins.host_local.ranges import Locator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cni_common.spec.request import Attachment
    from plugins.host_local.lease import Lease
    from plugins.host_local.ranges import Range, RangeSet
    from plugins.host_local.store import Store


@dataclass(frozen=True, slots=True)
class Choice:
    """The address chosen from range set `index`, and its range."""

    index: int
    address: Address
    range: Range
    former: Lease | None = None  # the stale lease that the new one replaces

    @property
    def cidr(self) -> Cidr:
        """The address with the prefix length of its subnet."""
        return ip_interface((self.address, self.range.subnet.prefixlen))


class Shortage(CNIError):  # noqa: N818 - the ADD may still succeed
    """No free address: `address` is not free, or if that is None, no address of `range_set`."""

    def __init__(
        self, index: int, reason: str, range_set: RangeSet, address: Address | None = None
    ) -> None:
        super().__init__(Code.INTERNAL, _failure(index, reason))
        self.range_set = range_set
        self.address = address

    def explain(self, held: Sequence[Lease], more: str) -> None:
        """Add the oldest of the leases `held`, and `more`, to the message."""
        owned = [lease for lease in held if lease.owner is not None]
        if owned and self.address is None:
            oldest = min(owned, key=lambda lease: lease.since_ns)
            self.msg += f"; the oldest lease is {oldest.address} of {oldest.holder}"
            self.msg += f" since {oldest.since}"
        self.msg += more


def refuse_duplicate(sets: Sequence[RangeSet], held: Sequence[Lease], owner: Attachment) -> None:
    """Raise CNIError if one of the leases `held`, which `owner` holds, lies in `sets`."""
    if not held:
        return
    locator = Locator(sets)
    for lease in held:
        index = locator.index_of(lease.address)
        if index is not None:
            raise CNIError(Code.INTERNAL, _failure(index, duplicate(lease, owner)))


def duplicate(lease: Lease, owner: Attachment) -> str:
    """Return the message that `owner`, the holder of `lease`, gets no second address."""
    return (
        f"{lease.address} has been allocated to {owner.containerid}, duplicate allocation is not"
        f" allowed: held by {lease.holder} since {lease.since}, DEL frees it"
    )


def assign(
    sets: Sequence[RangeSet], wanted: Mapping[Address, str], network: str
) -> dict[int, Address]:
    """Return the requested address of each range set, by the set's index.

    `wanted` has the source of each request. Raises CNIError if two addresses are requested of one
    set, or if one lies in no set.
    """
    assigned: dict[int, Address] = {}
    surplus: dict[Address, None] = {}
    reasons = []
    locator = Locator(sets) if wanted else None
    for address, source in wanted.items():
        index = locator.index_of(address) if locator else None
        if index is None:
            surplus[address] = None
            reasons.append(
                f"{address}, which {source} asks for, is in no range set of network '{network}'"
                f" (its ranges: {_ranges(sets)})"
            )
        elif index in assigned:
            # Choosing one of them would be a guess: name both.
            surplus |= {assigned[index]: None, address: None}
            reasons.append(
                f"range set {index} of network '{network}' ({_ranges([sets[index]])}) gives one"
                " address per attachment"
            )
        else:
            assigned[index] = address
    if surplus:
        raise CNIError(
            Code.INTERNAL,
            f"failed to allocate all requested IPs: {' '.join(map(str, surplus))}:"
            f" {listed(dict.fromkeys(reasons))}",
        )
    return assigned


def _ranges(sets: Sequence[RangeSet]) -> str:
    return listed(one for range_set in sets for one in range_set.ranges)


def choose_requested(index: int, range_set: RangeSet, address: Address, store: Store) -> Choice:
    """Return the choice of the requested `address`. Raises Shortage if it is not free."""
    where = range_set.range_of(address)
    assert where is not None, "assign() has checked it"
    if int(address) in range_set.gateways:
        raise CNIError(
            Code.INTERNAL, _failure(index, f"requested ip {address} is subnet's gateway")
        )
    lease = store.lease(address)
    if lease is not None:
        reason = (
            f"requested IP address {address} is not available in range set {range_set}:"
            f" held by {lease.holder} since {lease.since}"
        )
        raise Shortage(index, reason, range_set, address)
    return Choice(index, address, where)


def choose_next(index: int, range_set: RangeSet, store: Store) -> Choice:
    """Return the choice of the next free address. Raises Shortage if there is none."""
    address = store.next_free(range_set, store.last_reserved(index))
    if address is None:
        raise Shortage(index, exhausted(range_set), range_set)
    where = range_set.range_of(address)
    assert where is not None, "next_free() stays inside"
    return Choice(index, address, where)


def choose_left(
    index: int, range_set: RangeSet, wanted: Address | None, left: Sequence[Lease]
) -> Choice | None:
    """Return the choice of an address of the stale leases `left`: `wanted`, or any if None."""
    for lease in left:
        where = range_set.range_of(lease.address)
        if where is not None and wanted in (None, lease.address):
            return Choice(index, lease.address, where, lease)
    return None


def exhausted(range_set: RangeSet) -> str:
    """Return the message that no address of `range_set` is free."""
    return (
        f"no IP addresses available in range set: {range_set}:"
        f" {range_set.size} of {range_set.size} in use"
    )


def _failure(index: int, reason: str) -> str:
    return f"failed to allocate for range {index}: {reason}"
