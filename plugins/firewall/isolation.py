"""Which bridges are kept apart, by nftables: what a chain of ours drops, no other lets through.

`table inet pycni` has a set of bridges with a policy, and one of those whose containers may reach
each other through the host. What goes from one bridge of the first set to another is dropped.
Frames that a bridge hands from port to port do not pass there; `table bridge pycni_isolation` drops
those from and to the ports of isolated containers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_table
from cni_common.node.masquerade import TABLE
from plugins.firewall.conf import ISOLATED

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS

    Key = tuple[str, bytes]

PORTS_TABLE = nft_table.Table(nft_table.BRIDGE, "pycni_isolation")
BRIDGES, SAME, CHAIN = "isolated_bridges", "same_bridge", "isolation"
PORTS = "isolated_ports"
_SETS = (BRIDGES, SAME)
_SIZE = 3
_FILTER, _BRIDGE_FILTER = 0, -200  # NF_IP_PRI_FILTER, NF_BR_PRI_FILTER_BRIDGED


def settle(netns: NetNS, bridge: str, policies: Collection[str]) -> None:
    """Keep a bridge apart as its policies say, of which the strictest counts; without any, no more.

    Raises NetlinkError.
    """
    wanted: list[Key] = []
    unwanted: list[Key] = []
    (wanted if policies else unwanted).append((BRIDGES, _name(bridge)))
    may_meet = policies and ISOLATED not in policies
    (wanted if may_meet else unwanted).append((SAME, _name(bridge) * 2))
    base = _base() if wanted and not _has_base(netns, TABLE) else []
    _change(netns, TABLE, base=base, wanted=wanted, unwanted=unwanted)
    if not policies:
        removal = [
            TABLE.delete_rule(CHAIN),
            TABLE.delete_chain(CHAIN),
            *(TABLE.delete_set(name) for name in _SETS),
        ]
        _remove_base(netns, TABLE, removal, size=_SIZE, sets=_SETS)


def close_port(netns: NetNS, port: str) -> None:
    """Let no frame pass from and to a port of a bridge. Raises NetlinkError."""
    base = [] if _has_base(netns, PORTS_TABLE) else _ports_base()
    _change(netns, PORTS_TABLE, base=base, wanted=[(PORTS, _name(port))])


def open_port(netns: NetNS, port: str) -> None:
    """Take back what `close_port` did."""
    _change(netns, PORTS_TABLE, unwanted=[(PORTS, _name(port))])
    removal = [
        PORTS_TABLE.delete_rule(CHAIN),
        PORTS_TABLE.delete_chain(CHAIN),
        PORTS_TABLE.delete_set(PORTS),
    ]
    _remove_base(netns, PORTS_TABLE, removal, size=2, sets=(PORTS,))


def missing(netns: NetNS, bridge: str, policy: str, port: str) -> str:
    """Return what is not there of what keeps a bridge and a port apart, "" for nothing."""
    tables = [(TABLE, BRIDGES, bridge)]
    if policy == ISOLATED and port:
        tables.append((PORTS_TABLE, PORTS, port))
    for table, name, member in tables:
        what = "bridge" if table.family == nft_table.BRIDGE else "inet"
        if table.element(netns, name, _name(member)) is None:
            return f"'{member}' is not in set '{name}' of 'table {what} {table.name}'"
        if not table.rules(netns, CHAIN):
            return f"chain '{CHAIN}' of 'table {what} {table.name}' has lost its rules"
    if policy == ISOLATED and TABLE.element(netns, SAME, _name(bridge) * 2) is not None:
        return f"'{bridge}' is in set '{SAME}' of 'table inet {TABLE.name}'"
    return ""


def bridges(netns: NetNS) -> list[str]:
    """Return the bridges that are kept apart."""
    return [_text(element.key) for element in TABLE.elements(netns, BRIDGES)]


def ports(netns: NetNS) -> list[str]:
    """Return the ports that are closed."""
    return [_text(element.key) for element in PORTS_TABLE.elements(netns, PORTS)]


def _change(
    netns: NetNS,
    table: nft_table.Table,
    *,
    base: Sequence[Message] = (),
    wanted: Sequence[Key] = (),
    unwanted: Sequence[Key] = (),
) -> None:
    """Make sure of what is an element and what is none, by one transaction."""

    def messages() -> list[Message]:
        present = [table.element(netns, *key) for key in (*wanted, *unwanted)]
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


def _has_base(netns: NetNS, table: nft_table.Table) -> bool:
    return bool(table.rules(netns, CHAIN))


def _base() -> list[Message]:
    drop = nft_expressions.verdict(nft_table.DROP)
    return [
        TABLE.add(),
        TABLE.add_set(BRIDGES, nft_table.IIFNAME_KEY),
        TABLE.add_set(SAME, nft_table.IIFNAME_OIFNAME_KEY),
        TABLE.add_base_chain(CHAIN, kind="filter", hook=nft_table.FORWARD, priority=_FILTER),
        TABLE.delete_rule(CHAIN),
        TABLE.add_rule(
            CHAIN,
            *nft_expressions.iifname_oifname(),
            nft_expressions.lookup(SAME),
            nft_expressions.verdict(nft_table.ACCEPT),
        ),
        TABLE.add_rule(
            CHAIN,
            nft_expressions.iifname(),
            nft_expressions.lookup(BRIDGES),
            nft_expressions.oifname(),
            nft_expressions.lookup(BRIDGES),
            drop,
        ),
    ]


def _ports_base() -> list[Message]:
    messages = [
        PORTS_TABLE.add(),
        PORTS_TABLE.add_set(PORTS, nft_table.IIFNAME_KEY),
        PORTS_TABLE.add_base_chain(
            CHAIN, kind="filter", hook=nft_table.FORWARD, priority=_BRIDGE_FILTER
        ),
        PORTS_TABLE.delete_rule(CHAIN),
    ]
    for load in (nft_expressions.iifname(), nft_expressions.oifname()):
        look_up = nft_expressions.lookup(PORTS)
        messages.append(
            PORTS_TABLE.add_rule(CHAIN, load, look_up, nft_expressions.verdict(nft_table.DROP))
        )
    return messages


def _remove_base(
    netns: NetNS,
    table: nft_table.Table,
    deletions: Sequence[Message],
    *,
    size: int,
    sets: Sequence[str],
) -> None:
    if all(table.is_empty(netns, name) for name in sets) and table.has_chain(netns, CHAIN):
        messages = nft_table.without_base(netns, table, deletions, size=size, sets=sets)
        if messages:
            nft_table.apply_if_unused(netns, messages)


def _name(interface: str) -> bytes:
    return interface.encode("utf-8", "surrogateescape").ljust(nft_table.IIFNAME_BYTES, bytes(1))


def _text(name: bytes) -> str:
    return name.rstrip(bytes(1)).decode("utf-8", "surrogateescape")
