"""The reference's chains in table filter: accepted addresses, and isolated bridges.

FORWARD jumps to CNI-FORWARD, and that chain first to the administrator's chain; then it accepts
packets from a container and their replies. Packets of bridges with a policy pass two more chains.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from cni_common.kernel import nft_table
from cni_common.kernel.netlink import NetlinkError
from cni_common.spec.errors import CNIError
from plugins.firewall.conf import ISOLATED, SAME_BRIDGE
from plugins.firewall.filter_tables import (
    ADD_CHAIN,
    APPEND,
    DELETE,
    DELETE_CHAIN,
    FORWARD,
    INSERT,
    Edit,
)
from plugins.firewall.rules import ACCEPT, DROP, RETURN, Line, addresses_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from cni_common.spec.names import Address
    from plugins.firewall.filter_tables import Filter, NftFilter

ALLOWED = "CNI-FORWARD"
STAGE_1, STAGE_2 = "CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2"
TO_ALLOWED = Line(ALLOWED, comment="CNI firewall plugin rules")
_OVERRIDES = "CNI firewall plugin admin overrides"
_COMMENT = "CNI firewall plugin rules (ingressPolicy: {})"
_OF_ALL = _COMMENT.format(f"{SAME_BRIDGE}|{ISOLATED}")
_TO_STAGE_1 = Line(STAGE_1, comment=_OF_ALL)
_END = Line(RETURN, comment=_OF_ALL)


def override(admin: str) -> Line:
    """Return the rule by which administrators' rules come first."""
    return Line(admin, comment=_OVERRIDES)


def lines_of(addresses: Collection[Address]) -> Iterator[Line]:
    """Yield the rules that accept packets from and to a container."""
    for address in addresses:
        yield Line(ACCEPT, destination=address, established=True)
        yield Line(ACCEPT, source=address)


def admit(table: Filter, addresses: Collection[Address], admin: str) -> list[int]:
    """Accept packets from and to `addresses`; return the handles of new rules, if they have any.

    A rule that another record holds by its handle goes with that record, so it does not count.
    Raises CNIError, NetlinkError.
    """

    def plan() -> Iterator[Edit]:
        for chain in (ALLOWED, admin):
            if table.rules(chain) is None:
                yield Edit(ADD_CHAIN, chain)
        if not _has(table, FORWARD, TO_ALLOWED):
            yield Edit(INSERT, FORWARD, TO_ALLOWED)
            if _has(table, FORWARD, _TO_STAGE_1):  # isolation must come before acceptance
                yield Edit(DELETE, FORWARD, _TO_STAGE_1)
                yield Edit(INSERT, FORWARD, _TO_STAGE_1)
        to_admin = override(admin)
        present = table.rules(ALLOWED) or []
        if table.key(to_admin) not in present:
            yield Edit(INSERT, ALLOWED, to_admin)
        for line in lines_of(addresses):
            if not table.unheld(ALLOWED, line):
                yield Edit(APPEND, ALLOWED, line)

    return _carry_out(table, plan)


def append(table: Filter, addresses: Collection[Address]) -> list[int]:
    """Do as `admit` where the chains and jumps are there, and no rules of `addresses`."""
    return table.commit([Edit(APPEND, ALLOWED, line) for line in lines_of(addresses)])


def unheld(table: NftFilter, admins: Collection[str]) -> tuple[int, dict[str, int], list[str]]:
    """Return the other facts about the chain after it was listed.

    These are the handle of the jump to it, the handles of its jumps to `admins`, and the addresses
    of rules that no record holds; 0 stands for no jump.
    """
    table.rules(ALLOWED)
    jumps = {one: table.handle(ALLOWED, override(one)) for one in admins}
    found = {str(one) for key in table.unheld_rules(ALLOWED) for one in addresses_in(key)}
    table.rules(FORWARD)
    entry = table.handle(FORWARD, TO_ALLOWED)
    return entry, {one: handle for one, handle in jumps.items() if handle}, sorted(found)


def withdraw(table: Filter, addresses: Collection[Address], admin: str) -> None:
    """Remove the rules of `admit`; with the last also the chain, and an empty `admin` of ours."""

    def plan() -> Iterator[Edit]:
        if table.rules(ALLOWED):
            for line in lines_of(addresses):
                yield from [Edit(DELETE, ALLOWED, line)] * table.unheld(ALLOWED, line)

    _carry_out(table, plan)
    remove_if_unused(table, admin)


def remove_if_unused(table: Filter, admin: str) -> None:
    """Remove the chain if it lets nothing through, and then an empty `admin` of ours."""
    present = table.rules(ALLOWED)
    if present is not None and not any(_lets_through(table, key) for key in present):
        _remove_chains(table, TO_ALLOWED, (ALLOWED,))
    if table.rules(ALLOWED) is None and table.rules(admin) == [] and table.is_ours(admin):
        _remove_chains(table, None, (admin,))


def missing(table: Filter, addresses: Collection[Address], admin: str) -> Iterator[str]:
    """Yield each missing rule of `admit`."""
    wanted = [(FORWARD, TO_ALLOWED), (ALLOWED, override(admin))]
    yield from _missing(table, [*wanted, *((ALLOWED, line) for line in lines_of(addresses))])


def lost_jumps(table: Filter, admin: str) -> Iterator[str]:
    """Yield the missing rules of `admit` that all attachments share, in words."""
    if not _has(table, FORWARD, TO_ALLOWED):
        yield f"rule of {FORWARD} that leads to {ALLOWED}"
    if not _has(table, ALLOWED, override(admin)):
        yield f"rule of {ALLOWED} that leads to {admin}"


def admitted(table: Filter) -> list[Address]:
    """Return the accepted addresses, each once."""
    keys = table.rules(ALLOWED) or []
    present = set(keys)
    found = dict.fromkeys(address for key in keys for address in addresses_in(key))
    return [one for one in found if table.key(Line(ACCEPT, source=one)) in present]


def is_isolated(table: Filter, bridge: str) -> bool:
    """Tell whether there are rules for the policy of a bridge."""
    rules = [*_rules_of(bridge, SAME_BRIDGE), *_rules_of(bridge, ISOLATED)]
    return any(_has(table, chain, line) for chain, line in rules)


def is_whole(table: Filter, bridge: str) -> bool:
    """Tell whether all rules of one policy of a bridge are there, and FORWARD leads to them."""
    return _has(table, FORWARD, _TO_STAGE_1) and any(
        all(_has(table, chain, line) for chain, line in _rules_of(bridge, policy))
        for policy in (SAME_BRIDGE, ISOLATED)
    )


def isolate(table: Filter, bridge: str, policies: Collection[str]) -> None:
    """Make the rules of a bridge match its policies, of which the strictest counts.

    Without policies the rules are removed, and the chains with the last rules.
    """
    policy = ISOLATED if ISOLATED in policies else next(iter(policies), "")

    def plan() -> Iterator[Edit]:
        wanted = _rules_of(bridge, policy) if policy else []
        if wanted:
            yield from _frame(table)
        obsolete = [*_rules_of(bridge, SAME_BRIDGE), *_rules_of(bridge, ISOLATED)]
        for chain, line in dict.fromkeys(obsolete):
            if (chain, line) not in wanted and _has(table, chain, line):
                yield Edit(DELETE, chain, line)
        for chain, line in wanted:
            if not _has(table, chain, line):
                yield Edit(INSERT, chain, line)

    _carry_out(table, plan)
    end = [table.key(_END)]
    if not policy and table.rules(STAGE_1) == end and table.rules(STAGE_2) == end:
        _remove_chains(table, _TO_STAGE_1, (STAGE_1, STAGE_2))


def missing_of_policy(table: Filter, bridge: str, policy: str) -> Iterator[str]:
    """Yield each missing rule of `isolate`."""
    yield from _missing(table, [(FORWARD, _TO_STAGE_1), *_rules_of(bridge, policy)])
    order = table.rules(FORWARD) or []
    first, then = (table.key(line) for line in (_TO_STAGE_1, TO_ALLOWED))
    if first in order and then in order and order.index(then) < order.index(first):
        yield f"{FORWARD} of {table.name} leads to {ALLOWED} before {STAGE_1}"


def _rules_of(bridge: str, policy: str) -> list[tuple[str, Line]]:
    """Return the rules of one bridge, in the order of their insertion at the head of the chains."""
    comment = _COMMENT.format(policy)
    rules = [
        (STAGE_1, Line(STAGE_2, iif=bridge, but_oif=bridge, comment=comment)),
        (STAGE_2, Line(DROP, oif=bridge, comment=_OF_ALL)),
    ]
    if policy == ISOLATED:
        rules.insert(1, (STAGE_1, Line(DROP, iif=bridge, oif=bridge, comment=comment)))
    return rules


def _frame(table: Filter) -> Iterator[Edit]:
    for chain in (STAGE_1, STAGE_2):
        if table.rules(chain) is None:
            yield Edit(ADD_CHAIN, chain)
    if not _has(table, FORWARD, _TO_STAGE_1):
        yield Edit(INSERT, FORWARD, _TO_STAGE_1)
    for chain in (STAGE_1, STAGE_2):
        if not _has(table, chain, _END):
            yield Edit(APPEND, chain, _END)


def _has(table: Filter, chain: str, line: Line) -> bool:
    return table.key(line) in (table.rules(chain) or ())


def _missing(table: Filter, wanted: Sequence[tuple[str, Line]]) -> Iterator[str]:
    present = {chain: table.rules(chain) or [] for chain, _ in wanted}
    for chain, line in wanted:
        if table.key(line) not in present[chain]:
            yield f"rule '-A {chain} {line.text()}' of {table.name} is missing"


def _lets_through(table: Filter, key: object) -> bool:
    """Tell whether a rule of CNI-FORWARD is more than a jump to an administrator's chain."""
    if isinstance(key, str):
        return _OVERRIDES not in key
    return not isinstance(key, tuple) or key[0] != _OVERRIDES


def _carry_out(table: Filter, plan: Callable[[], Iterator[Edit]]) -> list[int]:
    """Apply the edits of `plan`; it is called again if another program was faster."""
    for attempt in range(nft_table.TRIES):
        edits = list(plan())
        try:
            return table.commit(edits) if edits else []
        except NetlinkError as error:
            if error.errno not in (errno.ENOENT, errno.EEXIST) or attempt == nft_table.TRIES - 1:
                raise
    raise AssertionError  # pragma: no cover - the loop returns or raises


def _remove_chains(table: Filter, jump: Line | None, chains: Sequence[str]) -> None:
    """Remove chains without rules, if at most `jump` leads to them."""
    edits = []
    if jump:
        times = (table.rules(FORWARD) or []).count(table.key(jump))
        edits = [Edit(DELETE, FORWARD, jump)] * times
    try:
        table.commit([*edits, *(Edit(DELETE_CHAIN, chain) for chain in chains)])
    except NetlinkError as error:
        if error.errno not in (errno.ENOENT, errno.EBUSY):
            raise
    except CNIError:
        # The command gives no reason. If a foreign rule leads there, the chains stay.
        if table.rules(chains[0]) is None:
            raise
