"""A layout: the sets, maps and chains that one subject has in a table of nftables, as data.

The base is shared by all attachments: it is made with the first element and removed with the last
one. What it consists of is declared once; requests and counts are derived from that. Chains of
single networks, which elements lead to, come and go beside it.
"""

from __future__ import annotations

import errno
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

    Key = tuple[str, bytes]  # a set's name, and the key of an element
    Rule = Sequence[Expression]

TABLE = nft_table.Table(nft_table.INET, "pycni")  # of every layout that is about IP packets
# Priorities: NF_IP_PRI_* of linux/netfilter_ipv4.h, NF_BR_PRI_* of linux/netfilter_bridge.h.
RAW, DSTNAT, FILTER, SRCNAT = -300, -100, 0, 100
BRIDGE_DSTNAT, BRIDGE_FILTER = -300, -200


@dataclass(frozen=True, slots=True)
class Family:
    """Where packets of an IP version have their addresses, and how sets have these as keys."""

    protocol: int  # NFPROTO_*
    key: tuple[int, int]  # as nft_table has keys: length, type
    source: int  # offset in the network header, bytes
    destination: int

    def look_up(self, offset: int, verdict_map: str) -> list[Expression]:
        """Return the rule that goes where a verdict map says for the address at `offset`."""
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
    goes_filled: bool = False  # its elements do not keep the base, and are removed with it


@dataclass(frozen=True, slots=True)
class Hook:
    """The place where packets enter a base chain."""

    kind: str  # "nat" or "filter"
    number: int
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; `rules` is called only when the chain has to be made."""

    name: str
    rules: Callable[[], Iterable[Rule]] = tuple
    hook: Hook | None = None
    is_open: bool = False  # rules come from elsewhere, are never flushed, and keep the base


@dataclass(frozen=True, slots=True)
class Layout:
    """The base that one subject has in a table."""

    table: nft_table.Table
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]

    @property
    def size(self) -> int:
        """How many objects of the table are the base's."""
        return len(self.sets) + len(self.chains)

    def base(self) -> tuple[Message, ...]:
        """Return the requests that make the base, or make it again where a part is missing."""
        return _base(self)

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

    def drift(self, netns: NetNS, *chains: str) -> str:
        """Return which of `chains` and of the chains at hooks has no rules, "" for none of them."""
        hooked = {chain.name for chain in self.chains if chain.hook}
        for name in sorted(hooked.union(chains)):
            if not self.table.rules(netns, name):
                return f"chain '{name}' of '{self.table}' has lost its rules"
        return ""

    def add(
        self,
        netns: NetNS,
        elements: Sequence[Message],
        *,
        chains: Sequence[Chain] = (),
        take_over: Callable[[], Sequence[Message]] | None = None,
    ) -> None:
        """Add `elements`, with the base and the networks' `chains` where there are none.

        That is one transaction: nobody can come in between. When a key is taken, `take_over`
        returns what adds the elements then, with the deletion of what may be replaced; it is called
        again when that has changed meanwhile. Raises what it raises, and NetlinkError.
        """
        needed = [chain.name for chain in chains] or [self.chains[0].name]
        # Asked for, since a refused transaction takes tens of milliseconds.
        if self.table.has_chain(netns, *needed) and _try_to_add(netns, elements):
            return
        frame = [*self.base(), *(one for chain in chains for one in _chain(self.table, chain))]
        for attempt in range(nft_table.TRIES):
            try:
                nft_table.apply(netns, [*frame, *(take_over() if take_over else elements)])
            except NetlinkError as error:
                # What `take_over` saw is gone, or there is something new under a key.
                is_outrun = take_over and error.errno in (errno.ENOENT, errno.EEXIST)
                if not is_outrun or attempt == nft_table.TRIES - 1:
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

        `successor` returns what the same transaction puts into the place of one.
        """
        removed: list[Element] = []

        def deletions() -> list[Message]:
            present = zip(keys, self.table.present(netns, keys), strict=True)
            ours = [(k, one) for k, one in present if one and owner in (None, one.comment)]
            removed[:] = [one for _, one in ours]
            return [
                message
                for key, _ in ours
                for message in (self.table.delete_element(*key), *successor(key))
            ]

        nft_table.apply_deletions(netns, deletions)
        return removed

    def remove_idle_chains(self, netns: NetNS, names: Iterable[str]) -> bool:
        """Remove those of the networks' chains that nothing leads to; tell whether one was idle.

        Chains of the base among `names` are asked about, but stay.
        """
        idle = [name for name in names if self.table.is_idle(netns, name)]
        for name in idle:
            if all(name != chain.name for chain in self.chains):
                messages = [self.table.delete_rule(name), self.table.delete_chain(name)]
                nft_table.apply_if_unused(netns, messages)
        return bool(idle)

    def remove_if_unused(self, netns: NetNS) -> None:
        """Remove the base once no element is left, and the table when it holds nothing else."""
        messages = removal(netns, [self]) if self.is_there(netns) else []
        if messages:
            nft_table.apply_if_unused(netns, messages)


def removal(netns: NetNS, layouts: Sequence[Layout]) -> list[Message]:
    """Return the requests that remove layouts of one table which are there, none while in use.

    The table is removed as well when it holds nothing else. Asked for, since the kernel takes some
    ten milliseconds to refuse a transaction.
    """
    if not layouts or any(one.is_used(netns) for one in layouts):
        return []
    table = layouts[0].table
    is_all = table.holds(netns) == sum(one.size for one in layouts)
    messages = [message for one in layouts for message in one.removal()]
    return [*messages, *([table.delete()] if is_all else [])]


@cache
def _base(layout: Layout) -> tuple[Message, ...]:
    table = layout.table
    messages = [table.add()]
    messages += [table.add_set(one.name, one.key, data=one.data) for one in layout.sets]
    # All chains come before the first rule, as rules lead from one to another.
    messages += [_add_chain(table, chain) for chain in layout.chains]
    for chain in layout.chains:
        messages += _rules(table, chain)
    return tuple(messages)


@lru_cache(maxsize=64)  # networks
def _chain(table: nft_table.Table, chain: Chain) -> tuple[Message, ...]:
    return (_add_chain(table, chain), *_rules(table, chain))


def _add_chain(table: nft_table.Table, chain: Chain) -> Message:
    hook = chain.hook
    if hook is None:
        return table.add_chain(chain.name)
    return table.add_base_chain(
        chain.name, kind=hook.kind, hook=hook.number, priority=hook.priority
    )


def _rules(table: nft_table.Table, chain: Chain) -> list[Message]:
    if chain.is_open:
        return []
    rules = [table.add_rule(chain.name, *rule) for rule in chain.rules()]
    return [table.delete_rule(chain.name), *rules]


def _try_to_add(netns: NetNS, elements: Sequence[Message]) -> bool:
    """Add `elements`; False when one is there already, or what they need is gone."""
    try:
        nft_table.apply(netns, elements)
    except NetlinkError as error:
        if error.errno not in (errno.ENOENT, errno.EEXIST):
            raise
        return False
    return True
