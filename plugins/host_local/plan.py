"""Which addresses an ADD takes, or why it cannot. Pure: the caller claims them."""

from dataclasses import dataclass
from ipaddress import ip_interface

from cni_common.errors import CNIError, Code
from cni_common.types import Address, Cidr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    from cni_common.request import Attachment
    from plugins.host_local.ranges import Range, RangeSet
    from plugins.host_local.store import Lease


@dataclass(frozen=True, slots=True)
class Choice:
    """The address that range set `index` gives, and the range it lies in."""

    index: int
    address: Address
    range: "Range"
    stale: "Lease | None"  # the lease that a crash left behind there, to be replaced

    @property
    def cidr(self) -> Cidr:
        """The address with the prefix length of its subnet."""
        return ip_interface((self.address, self.range.subnet.prefixlen))


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is taken: the leases of the store, and the addresses that are seen in use."""

    leases: "Mapping[Address, Lease]"
    in_use: "Callable[[], frozenset[Address]]"  # expensive

    def is_stale(self, lease: "Lease") -> bool:
        """Tell whether a crash left `lease` behind, and nobody uses the address."""
        return lease.reclaimable and not lease.is_young() and lease.address not in self.in_use()


def refuse_duplicate(sets: "Sequence[RangeSet]", ledger: Ledger, owner: "Attachment") -> None:
    """Raise CNIError when `owner` holds an address of `sets` already."""
    for index, range_set in enumerate(sets):
        for lease in ledger.leases.values():
            if lease.is_of(owner) and range_set.range_of(lease.address) is not None:
                _fail(index, duplicate(lease, owner))


def duplicate(lease: "Lease", owner: "Attachment") -> str:
    """Return why `owner`, who holds `lease`, gets no other address."""
    return (
        f"{lease.address} has been allocated to {owner.containerid}, duplicate allocation is not"
        f" allowed: held by {lease.holder} since {lease.since}, DEL frees it"
    )


def assign(sets: "Sequence[RangeSet]", wanted: "Sequence[Address]") -> dict[int, Address]:
    """Return which of the `wanted` addresses each range set is asked for.

    Raises CNIError when a set is asked for two, or an address belongs to no set.
    """
    assigned: dict[int, Address] = {}
    surplus: list[Address] = []
    reasons = []
    for address in wanted:
        index = next((i for i, one in enumerate(sets) if one.range_of(address) is not None), None)
        if index is None:
            surplus.append(address)
            reasons.append(f"{address} is in no range set")
        elif index in assigned:
            # Which of them to take would be a guess: name them all.
            surplus += [a for a in (assigned[index], address) if a not in surplus]
            reasons.append(f"range set {index} ({sets[index]}) gives one address per attachment")
        else:
            assigned[index] = address
    if surplus:
        raise CNIError(
            Code.INTERNAL,
            f"failed to allocate all requested IPs: {' '.join(map(str, surplus))}:"
            f" {', '.join(dict.fromkeys(reasons))}",
        )
    return assigned


def choose_requested(index: int, range_set: "RangeSet", address: Address, ledger: Ledger) -> Choice:
    """Return the choice of the requested `address`. Raises CNIError when it is not free."""
    where = range_set.range_of(address)
    assert where is not None, "assign() saw to it"
    if int(address) in range_set.gateways:
        _fail(index, f"requested ip {address} is subnet's gateway")
    lease = ledger.leases.get(address)
    if lease is not None and not ledger.is_stale(lease):
        _fail(
            index,
            f"requested IP address {address} is not available in range set {range_set}:"
            f" held by {lease.holder} since {lease.since}",
        )
    return Choice(index, address, where, lease)


def choose_next(index: int, range_set: "RangeSet", after: Address | None, ledger: Ledger) -> Choice:
    """Return the choice of the next free address behind `after`.

    What a crash left behind is taken only when nothing else is free: to see whether such an
    address is in use is expensive. Raises CNIError when the set is exhausted.
    """
    held = [
        lease for lease in ledger.leases.values() if range_set.range_of(lease.address) is not None
    ]
    address = range_set.pick({int(lease.address) for lease in held}, after)
    if address is None:
        firm = {int(lease.address) for lease in held if not ledger.is_stale(lease)}
        address = range_set.pick(firm, after)
    if address is None:
        _fail(index, exhausted(range_set) + _oldest(held))
    where = range_set.range_of(address)
    assert where is not None, "pick() stays inside"
    return Choice(index, address, where, ledger.leases.get(address))


def exhausted(range_set: "RangeSet") -> str:
    """Return the sentence that says that no address of `range_set` is free."""
    return (
        f"no IP addresses available in range set: {range_set}:"
        f" {range_set.size} of {range_set.size} in use"
    )


def _oldest(held: "Sequence[Lease]") -> str:
    owned = [lease for lease in held if lease.owner is not None]
    if not owned:
        return ""
    oldest = min(owned, key=lambda lease: lease.since_ns)
    return f"; the oldest lease is {oldest.address} of {oldest.holder} since {oldest.since}"


def _fail(index: int, reason: str) -> "NoReturn":
    raise CNIError(Code.INTERNAL, f"failed to allocate for range {index}: {reason}")
