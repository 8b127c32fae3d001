"""Masquerades packets of this node's pods that leave the cluster, by a table of the agent's own.

`table inet pycni-agent` has one chain at postrouting. A packet's source and destination are looked
up together in a set of ranges, one for each IP version: a packet that is found stays as it is. Any
other packet from a pod of this node is masqueraded. So the number of ranges costs a packet nothing
(pipapo), and packets of other sources are never touched. One transaction makes or changes it all.
"""

from __future__ import annotations

from hashlib import sha256
from ipaddress import collapse_addresses, ip_network
from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_layout, nft_table
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.nft_layout import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from agent.cluster import Network
    from agent.network.masquerade_config import Masquerading
    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_layout import Rule

TABLE = nft_table.Table(nft_table.INET, "pycni-agent")
_CHAIN = "postrouting"
_SETS = {4: "stays4", 6: "stays6"}  # ranges of source and destination
_KEYS = {4: nft_table.IPV4_IPV4_KEY, 6: nft_table.IPV6_IPV6_KEY}
# The register behind an address in the first one.
_SECOND = {4: nft_expressions.REG32_01, 6: nft_expressions.REG32_04}
_MULTICAST = {4: ip_network("224.0.0.0/4"), 6: ip_network("ff00::/8")}
_LINK_LOCAL = {4: ip_network("169.254.0.0/16"), 6: ip_network("fe80::/10")}

Element = tuple[bytes, bytes]  # first and last key of a range


def converge(
    netns: NetNS, own: Sequence[Network], inside: Iterable[Network], config: Masquerading
) -> bool:
    """Masquerade packets from `own` ranges to others than those `inside`; return if it changed.

    Raises NetlinkError.
    """
    elements = _elements(own, inside, config)
    rules = _rules(own)
    comments = [comment for comment, _ in rules]
    present = {
        version: {(one.key, one.end) for one in TABLE.elements(netns, name)}
        for version, name in _SETS.items()
    }
    is_whole = [rule.comment for rule in TABLE.rules(netns, _CHAIN)] == comments
    if is_whole and present == elements:
        return False
    messages = [] if is_whole else _frame(rules)
    for version, name in _SETS.items():
        gone, new = present[version] - elements[version], elements[version] - present[version]
        messages += [TABLE.delete_element(name, *one) for one in sorted(gone)]
        messages += [TABLE.add_element(name, *one) for one in sorted(new)]
    try:
        nft_table.apply(netns, messages)
    except NetlinkError:
        # Others have changed it meanwhile, or beyond recognition: made anew, without a gap.
        messages = [TABLE.add(), TABLE.delete(filled=True), *_frame(rules)]
        for version, name in _SETS.items():
            messages += [TABLE.add_element(name, *one) for one in sorted(elements[version])]
        nft_table.apply(netns, messages)
    return True


def remove(netns: NetNS) -> None:
    """Remove the table if it is there. Raises NetlinkError."""
    if TABLE.holds(netns):
        nft_table.apply_if_unused(netns, [TABLE.delete(filled=True)])


def _frame(rules: Sequence[tuple[str, Rule]]) -> list[Message]:
    """Return the requests that make all but the elements; the rules are made anew."""
    hook = ("nat", nft_table.POSTROUTING, nft_layout.SRCNAT)
    type, where, priority = hook
    return [
        TABLE.add(),
        *(
            TABLE.add_set(name, _KEYS[v], fields=(FAMILIES[v].key[0],) * 2)
            for v, name in _SETS.items()
        ),
        TABLE.add_base_chain(_CHAIN, type=type, hook=where, priority=priority),
        TABLE.delete_rule(_CHAIN),
        *(TABLE.add_rule(_CHAIN, *rule, comment=comment) for comment, rule in rules),
    ]


def _rules(own: Sequence[Network]) -> list[tuple[str, Rule]]:
    """Return the rules with their comments, by which a rule that others have put is recognised."""
    named = []
    for version, name in _SETS.items():
        family = FAMILIES[version]
        length = family.key[0]
        rule = [
            *nft_expressions.meta_nfproto(family.protocol),
            nft_expressions.network_bytes(family.source, length),
            nft_expressions.network_bytes(family.destination, length, _SECOND[version]),
            nft_expressions.lookup(name),
            nft_expressions.verdict(nft_table.ACCEPT),
        ]
        named.append(("stays in the cluster", rule))
    for network in sorted(own, key=str):
        family = FAMILIES[network.version]
        packed = network.network_address.packed
        rule = [
            *family.within(family.source, packed, network.prefixlen),
            nft_expressions.masquerade(random=True),
        ]
        named.append((f"pods of this node leave: {network}", rule))
    return [(f"{words} ({_digest(rule)})", rule) for words, rule in named]


def _digest(rule: Rule) -> str:
    return sha256(b"".join(rule)).hexdigest()[:8]


def _elements(
    own: Sequence[Network], inside: Iterable[Network], config: Masquerading
) -> dict[int, set[Element]]:
    """Return the elements of each set. Ranges are joined: a set refuses those that overlap."""
    everything = [*inside, *config.unmasqueraded, *_MULTICAST.values()]
    everything += [_LINK_LOCAL[4]] if not config.link_local else []
    everything += [_LINK_LOCAL[6]] if not config.link_local6 else []
    return {
        version: {
            _element(source, destination)
            for source in _joined(version, own)
            for destination in _joined(version, everything)
        }
        for version in _SETS
    }


def _joined(version: int, networks: Iterable[Network]) -> list[Network]:
    """Return the networks of an IP version without overlap, and as few as possible."""
    chosen: Any = [one for one in networks if one.version == version]
    return [*collapse_addresses(chosen)]


def _element(source: Network, destination: Network) -> Element:
    first = source.network_address.packed + destination.network_address.packed
    return first, source.broadcast_address.packed + destination.broadcast_address.packed
