"""Objects of attachments on the node, as the operators' commands list them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cni_common.spec.names import Address
    from cni_common.spec.request import Attachment


@dataclass(frozen=True, slots=True)
class Owned:
    """One object that a record names."""

    kind: str  # as docs/operators.md has them: veth, masquerade, ...
    what: str
    present: bool


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
    idle: bool = False  # nothing can be using it, whatever lives
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
