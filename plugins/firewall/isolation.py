"""Isolation of bridges by nftables: no other chain can accept a packet that our chain drops.

`table inet pycni` has a set of bridges with a policy, and a set of those whose containers may reach
each other through the host. Packets from one bridge of the first set to another are dropped. Frames
that a bridge forwards from port to port do not pass there; `table bridge pycni_isolation` drops
those from and to the ports of isolated containers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_layout, nft_table
from cni_common.kernel.nft_layout import TABLE, Chain, Layout, Set
from cni_common.kernel.nft_table import interface_key, interface_name
from plugins.firewall.conf import ISOLATED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_layout import Key, Rule
    from plugins.firewall.facts import IsolationFacts

PORTS_TABLE = nft_table.Table(nft_table.BRIDGE, "pycni_isolation")
BRIDGES, SAME, CHAIN = "isolated_bridges", "same_bridge", "isolation"
PORTS = "isolated_ports"


def _bridge_rules() -> Iterator[Rule]:
    yield [
        *nft_expressions.iifname_oifname(),
        nft_expressions.lookup(SAME),
        nft_expressions.verdict(nft_table.ACCEPT),
    ]
    yield [
        nft_expressions.iifname(),
        nft_expressions.lookup(BRIDGES),
        nft_expressions.oifname(),
        nft_expressions.lookup(BRIDGES),
        nft_expressions.verdict(nft_table.DROP),
    ]


def _port_rules() -> Iterator[Rule]:
    for load in (nft_expressions.iifname(), nft_expressions.oifname()):
        yield [load, nft_expressions.lookup(PORTS), nft_expressions.verdict(nft_table.DROP)]


LAYOUT = Layout(
    TABLE,
    (Set(BRIDGES, nft_table.IIFNAME_KEY), Set(SAME, nft_table.IIFNAME_OIFNAME_KEY)),
    (Chain(CHAIN, _bridge_rules, ("filter", nft_table.FORWARD, nft_layout.FILTER)),),
)
PORTS_LAYOUT = Layout(
    PORTS_TABLE,
    (Set(PORTS, nft_table.IIFNAME_KEY),),
    (Chain(CHAIN, _port_rules, ("filter", nft_table.FORWARD, nft_layout.BRIDGE_FILTER)),),
)


def ensure(netns: NetNS, bridge: str, policies: Collection[str]) -> None:
    """Isolate a bridge by the strictest of its policies; without any, remove its isolation.

    Raises NetlinkError.
    """
    wanted: list[Key] = []
    unwanted: list[Key] = []
    (wanted if policies else unwanted).append((BRIDGES, interface_key(bridge)))
    may_meet = policies and ISOLATED not in policies
    (wanted if may_meet else unwanted).append((SAME, interface_key(bridge) * 2))
    _change(netns, LAYOUT, wanted=wanted, unwanted=unwanted)
    if not policies:
        LAYOUT.remove_if_unused(netns)


def is_as(netns: NetNS, policy: IsolationFacts) -> bool:
    """Tell whether a bridge is isolated just as this policy wants it."""
    may_meet = TABLE.element(netns, SAME, interface_key(policy.bridge) * 2) is not None
    wanted = policy.policy != ISOLATED
    drift = missing(netns, policy.bridge, policy.policy, "")
    return may_meet == wanted and next(drift, None) is None


def close_port(netns: NetNS, port: str) -> None:
    """Drop all frames from and to other ports at a port of a bridge. Raises NetlinkError."""
    _change(netns, PORTS_LAYOUT, wanted=[(PORTS, interface_key(port))])


def open_port(netns: NetNS, port: str) -> None:
    """Undo `close_port`. Raises NetlinkError."""
    PORTS_LAYOUT.remove(netns, [(PORTS, interface_key(port))])
    PORTS_LAYOUT.remove_if_unused(netns)


def missing(netns: NetNS, bridge: str, policy: str, port: str) -> Iterator[str]:
    """Yield each missing object of a bridge's and a port's isolation."""
    parts = [(LAYOUT, BRIDGES, bridge)]
    if policy == ISOLATED and port:
        parts.append((PORTS_LAYOUT, PORTS, port))
    for layout, name, member in parts:
        if layout.table.element(netns, name, interface_key(member)) is None:
            yield f"'{member}' is not in set '{name}' of '{layout.table}'"
        yield from layout.drift(netns)
    if policy == ISOLATED and TABLE.element(netns, SAME, interface_key(bridge) * 2) is not None:
        yield f"'{bridge}' is in set '{SAME}' of '{TABLE}'"


def bridges(netns: NetNS) -> list[str]:
    """Return the isolated bridges."""
    return [interface_name(element.key) for element in TABLE.elements(netns, BRIDGES)]


def ports(netns: NetNS) -> list[str]:
    """Return the closed ports."""
    return [interface_name(element.key) for element in PORTS_TABLE.elements(netns, PORTS)]


def _change(
    netns: NetNS,
    layout: Layout,
    *,
    wanted: Sequence[Key],
    unwanted: Sequence[Key] = (),
) -> None:
    """Add the elements `wanted` and delete `unwanted`, by one transaction."""
    table = layout.table
    base = layout.base() if wanted and layout.drift(netns) else ()

    def messages() -> list[Message]:
        present = table.present(netns, [*wanted, *unwanted])
        absent = [key for key, found in zip(wanted, present, strict=False) if not found]
        too_many = [
            key for key, found in zip(unwanted, present[len(wanted) :], strict=True) if found
        ]
        return [
            *base,
            *(table.add_element(*key) for key in absent),
            *(table.delete_element(*key) for key in too_many),
        ]

    nft_table.apply_deletions(netns, messages)
