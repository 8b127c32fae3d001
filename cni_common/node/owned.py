"""Objects of attachments on the node, as the operators' commands list them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.netns import NetNS
from cni_common.node import namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from cni_common.kernel.nft_layout import Layout
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.request import Attachment


@dataclass(frozen=True, slots=True)
class Owned:
    """One object that a record names."""

    kind: str  # as docs/operators.md has them: veth, masquerade, ...
    what: str
    present: bool
    shared: bool = False  # stays when the attachment goes
    # Another plugin of the chain may set it anew, then what that has noted counts: "mtu of eth0".
    setting: str = ""
    final: bool = False  # once it is lost, only a new ADD of the attachment makes it


@dataclass(frozen=True, slots=True)
class Usage:
    """The effect of a part on the container's traffic, and how often it occurred."""

    kind: str  # as of Owned
    what: str
    packets: int | None = None  # None: not counted. Of NAT: the connections
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Stray:
    """One object that is stale unless a record claims it or its address is in use."""

    kind: str
    what: str
    names: tuple[str, ...]  # network, container and interface, as far as they are known
    owner: str  # by what records claim it, see Part.claims
    addresses: frozenset[Address]  # of the container; empty: nothing tells whether it lives
    reason: str
    remove: Callable[[], object]  # no questions asked
    idle: bool = False  # nothing can be using it, even if containers live
    # Of another implementation, which has no records: a lease speaks for it, and nothing is done
    # about networks that are unknown here. `remove_from` gets the network, `names_by` all networks.
    remove_from: Callable[[str], object] | None = None
    names_by: Callable[[Collection[str]], tuple[str, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Holding:
    """One lease, and the known state of its owner."""

    address: Address
    owner: Attachment | None  # None: its file names none
    since: str  # RFC 3339 in UTC
    is_young: bool  # so its ADD may still be at work
    pod: str  # namespace/name, "" when the runtime did not say
    netns: str  # path, "" when no record tells
    alive: bool | None  # whether its namespace exists; None: unknown
    reason: str  # why it would be reclaimed now, "" when it would not


@dataclass(frozen=True, slots=True)
class Pool:
    """A range of addresses from which leases are given."""

    directory: str  # of the leases
    text: str  # the range in words: a subnet, or first and last address
    size: int  # addresses that can be given out
    holds: Callable[[Address], bool]


def lost_rules(kind: str, layout: Layout, netns: NetNS, *chains: str) -> Iterator[Owned]:
    """Yield as missing the rules that chains of a layout have lost; nothing if all is there."""
    for name in layout.bare(netns, *chains):
        yield Owned(kind, f"rules of chain '{name}' of {layout.table}", present=False, shared=True)


@contextmanager
def recorded_netns(record: Record) -> Iterator[NetNS | None]:
    """Open the namespace of a record's container, wherever it is mounted; None if it is not found.

    Raises OSError.
    """
    path, wanted = str(record.facts.get("netns", "")), str(record.facts.get("netns_id") or "")
    found = namespaces.find(path, wanted)
    try:
        yield found
    finally:
        if found:
            found.close()
