"""A layout: the sets, maps and chains that one subject has in a table of nftables, as data.

All attachments share the base: it is made with the first element and removed with the last one. Its
parts are declared once; requests and counts are derived from the declaration. The chains of single
networks, to which elements lead, are made and removed beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_table
from cni_common.kernel.netlink import NetlinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_expressions import Expression
    from cni_common.kernel.nft_messages import Element

    Key = nft_table.Key
    Rule = Sequence[Expression]

TABLE = nft_table.Table(nft_table.INET, "pycni")  # of every layout for IP packets
# Priorities: NF_IP_PRI_* of linux/netfilter_ipv4.h, NF_BR_PRI_* of linux/netfilter_bridge.h.
RAW, DSTNAT, FILTER, SRCNAT = -300, -100, 0, 100
BRIDGE_DSTNAT, BRIDGE_FILTER = -300, -200


@dataclass(frozen=True, slots=True)
class Family:
    """An IP version: the place of addresses in packets, and their keys in sets."""

    protocol: int  # NFPROTO_*
    key: tuple[int, int]  # length and type, as in nft_table
    source: int  # offset in the network header, bytes
    destination: int

    def look_up(self, offset: int, verdict_map: str) -> list[Expression]:
        """Return the rule that looks up the address at `offset` in a verdict map."""
        return [
            *nft_expressions.meta_nfproto(self.protocol),
            nft_expressions.network_bytes(offset, self.key[0]),
            nft_expressions.lookup(verdict_map, verdict=True),
        ]

    def within(self, offset: int, network: bytes, prefixlen: int) -> list[Expression]:
        """Return a match on packets whose address at `offset` is in a network."""
        return [
            *nft_expressions.meta_nfproto(self.protocol),
            nft_expressions.network_bytes(offset, len(network)),
            *nft_expressions.in_subnet(network, prefixlen),
        ]


FAMILIES = {
    4: Family(nft_table.IPV4, nft_table.IPV4_KEY, 12, 16),
    6: Family(nft_table.IPV6, nft_table.IPV6_KEY, 8, 24),
}


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or a map from its keys to `data`."""

    name: str
    key: tuple[int, int]
    data: tuple[int, int] | None = None
    goes_filled: bool = False  # its elements do not keep the base; they are removed with it
    fields: tuple[int, ...] = ()  # lengths of a key's parts, if the elements are ranges
    counted: bool = False  # its elements count packets, unless an older release has made it


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; `rules` is called only to make the chain.

    A base chain has a `hook`: its type, NF_INET_* or NF_BR_*, and the priority.
    """

    name: str
    rules: Callable[[], Iterable[Rule]] = tuple
    hook: tuple[str, int, int] | None = None
    is_open: bool = False  # others add its rules; these are never flushed, and keep the base


@dataclass(frozen=True, slots=True)
class Layout:
    """The base of one subject in a table."""

    table: nft_table.Table
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]

    @property
    def size(self) -> int:
        """The number of the base's objects in the table."""
        return len(self.sets) + len(self.chains)

    def base(self, netns: NetNS | None = None) -> tuple[Message, ...]:
        """Return the requests that make the base, or its missing parts.

        Sets that are counted need `netns`: one that an older release has made there does not count,
        and stays so, as the kernel refuses a request for another kind (EEXIST).
        """
        counted = [one.name for one in self.sets if one.counted]
        if netns is None or not counted:
            return _base(self)
        return _base(self, frozenset(self.table.uncounted(netns, counted)))

    def removal(self) -> list[Message]:
        """Return the requests that remove the base, the table not included; EBUSY while in use."""
        table = self.table
        return [
            *(table.delete_rule(chain.name) for chain in self.chains if not chain.is_open),
            *(table.delete_chain(chain.name) for chain in self.chains),
            *(table.delete_set(one.name, filled=one.goes_filled) for one in self.sets),
        ]

    def is_there(self, netns: NetNS) -> bool:
        """Tell whether all chains of the base exist."""
        return self.table.has_chain(netns, *(chain.name for chain in self.chains))

    def is_used(self, netns: NetNS) -> bool:
        """Tell whether elements keep the base."""
        names = [one.name for one in self.sets if not one.goes_filled]
        return not all(self.table.is_empty(netns, name) for name in names)

    def bare(self, netns: NetNS, *chains: str) -> list[str]:
        """Return those of the chains at hooks, and of `chains`, that have no rules, or are gone."""
        hooked = {chain.name for chain in self.chains if chain.hook}
        names = sorted(hooked.union(chains))
        return [name for name in names if not self.table.rules(netns, name)]

    def drift(self, netns: NetNS, *chains: str) -> list[str]:
        """Return what `bare` finds, in words."""
        bare = self.bare(netns, *chains)
        return [f"chain '{name}' of '{self.table}' has lost its rules" for name in bare]

    def add(
        self,
        netns: NetNS,
        elements: Sequence[Message],
        *,
        chains: Sequence[Chain] = (),
        take_over: Callable[[], Sequence[Message]] | None = None,
    ) -> None:
        """Add `elements`, with the base and the networks' `chains` where they are missing.

        All is one transaction, so no other call can come in between. If a key exists, `take_over`
        returns the requests that delete replaceable elements and add ours; it is called again if
        the elements have changed meanwhile, or the kernel's answer was lost. Raises NetlinkError,
        and the errors of `take_over`.
        """
        needed = [chain.name for chain in chains] or [self.chains[0].name]
        # Queried first, since a refused transaction takes tens of milliseconds.
        if self.table.has_chain(netns, *needed) and _try_to_add(netns, elements):
            return
        frame = [*self.base(netns), *(one for chain in chains for one in _chain(self.table, chain))]
        for attempt in range(nft_table.TRIES):
            try:
                nft_table.apply(netns, [*frame, *(take_over() if take_over else elements)])
            except NetlinkError as error:
                # An element that `take_over` saw is gone, or a key has a new one.
                is_outrun = error.errno in (*nft_table.LOOK_AGAIN, *nft_table.TAKEN)
                if not (take_over and is_outrun) or attempt == nft_table.TRIES - 1:
                    raise
            else:
                return

    def remove(
        self,
        netns: NetNS,
        keys: Sequence[Key],
        *,
        owner: str | None = None,
        successor: Callable[[Key], Sequence[Message]] = lambda _key: (),
    ) -> list[Element]:
        """Remove the elements under `keys` that have the comment `owner`, or any; return them.

        `successor` returns the requests that replace an element in the same transaction.
        """
        removed: list[Element] = []

        def deletions() -> list[Message]:
            present = zip(keys, self.table.present(netns, keys), strict=True)
            ours = [(k, one) for k, one in present if one and owner in (None, one.comment)]
            removed[:] = [one for _, one in ours]
            return [
                *(self.table.delete_element(*key) for key, _ in ours),
                *(message for key, _ in ours for message in successor(key)),
            ]

        nft_table.apply_deletions(netns, deletions)
        return removed

    def remove_idle_chains(self, netns: NetNS, names: Iterable[str]) -> bool:
        """Remove the unused ones of the networks' chains; return whether one was unused.

        Chains of the base among `names` are checked, but stay.
        """
        idle = [name for name in names if self.table.is_idle(netns, name)]
        for name in idle:
            is_own = all(name != chain.name for chain in self.chains)
            # A chain that does not exist is idle, too, and no request may be made for it.
            if is_own and self.table.has_chain(netns, name):
                messages = [self.table.delete_rule(name), self.table.delete_chain(name)]
                nft_table.apply_if_unused(netns, messages)
        return bool(idle)

    def remove_if_unused(self, netns: NetNS) -> None:
        """Remove the base if no element is left, and the table if it is then empty."""
        messages = removal(netns, [self]) if self.is_there(netns) else []
        if messages:
            nft_table.apply_if_unused(netns, messages)


def removal(netns: NetNS, layouts: Sequence[Layout]) -> list[Message]:
    """Return the requests that remove existing, unused layouts of one table.

    The table is removed too if it is then empty. Use is queried first, since the kernel takes some
    ten milliseconds to refuse a transaction.
    """
    if not layouts or any(one.is_used(netns) for one in layouts):
        return []
    table = layouts[0].table
    is_all = table.holds(netns) == sum(one.size for one in layouts)
    messages = [message for one in layouts for message in one.removal()]
    return [*messages, *([table.delete()] if is_all else [])]


@cache
def _base(layout: Layout, uncounted: frozenset[str] = frozenset()) -> tuple[Message, ...]:
    table = layout.table
    messages = [table.add()]
    for one in layout.sets:
        counted = one.counted and one.name not in uncounted
        messages.append(
            table.add_set(one.name, one.key, data=one.data, fields=one.fields, counted=counted)
        )
    # All chains come before the first rule, since rules refer to chains.
    messages += [_add_chain(table, chain) for chain in layout.chains]
    for chain in layout.chains:
        messages += _rules(table, chain)
    return tuple(messages)


@lru_cache(maxsize=64)  # networks
def _chain(table: nft_table.Table, chain: Chain) -> tuple[Message, ...]:
    return (_add_chain(table, chain), *_rules(table, chain))


def _add_chain(table: nft_table.Table, chain: Chain) -> Message:
    if chain.hook is None:
        return table.add_chain(chain.name)
    type, hook, priority = chain.hook
    return table.add_base_chain(chain.name, type=type, hook=hook, priority=priority)


def _rules(table: nft_table.Table, chain: Chain) -> list[Message]:
    if chain.is_open:
        return []
    rules = [table.add_rule(chain.name, *rule) for rule in chain.rules()]
    return [table.delete_rule(chain.name), *rules]


def _try_to_add(netns: NetNS, elements: Sequence[Message]) -> bool:
    """Add `elements`; return False if that must be looked at, as where one exists already."""
    try:
        nft_table.apply(netns, elements)
    except NetlinkError as error:
        if error.errno not in (*nft_table.LOOK_AGAIN, *nft_table.TAKEN):
            raise
        return False
    return True
