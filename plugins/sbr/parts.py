"""The part of an attachment: rules, tables, and what the main table has lost."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cni_common.kernel.policy_routing import (
    RESERVED_TABLES,
    UNSUPPORTED,
    WholeRoute,
    all_rules,
    no_rule,
    rules,
    whole_routes,
)
from cni_common.node.lifecycle import Lifecycle, Part, in_container, refuse_elsewhere
from cni_common.spec.undo import BestEffort
from plugins.sbr.plan import FIRST_TABLE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from typing import Self

    from cni_common.kernel.policy_routing import Rule
    from cni_common.kernel.rtnetlink import Netlink
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Unrecorded
    from cni_common.node.owned import Owned
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.request import Request
    from plugins.sbr.plan import Plan

# Errors of a route, or of its removal, that say that it is there, or gone.
GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV)
# Why a route of the main table cannot be made again: it is there, or the container has taken
# down the interface, or taken away the address or the route that it needs.
PASSED = (
    *(errno.EEXIST, errno.ENODEV, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH),
    errno.EINVAL,
)


@dataclass(frozen=True, slots=True)
class RoutingFacts:
    """Rules and routes in the container's namespace. Routes are in hexadecimal digits."""

    PART = "routing"
    index: int = 0  # of the interface
    rules: Sequence[Sequence[object]] = ()  # source and table of each
    routes: Sequence[str] = ()  # in the tables of the rules
    moved: Sequence[str] = ()  # taken out of the main table
    hinted: Sequence[str] = ()  # put there instead

    @classmethod
    def of(cls, index: int, plan: Plan) -> Self:
        """Return the facts of a plan for the interface `index`."""
        return cls(
            index,
            [[str(source), table] for source, table in plan.rules],
            *([one.text for one in routes] for routes in (plan.routes, plan.moved, plan.hinted)),
        )

    def each_rule(self) -> Iterator[tuple[Address, int]]:
        """Yield source and table of each rule."""
        for source, table in self.rules:
            yield ip_address(str(source)), int(str(table))


class Routing(Part):
    """Rules by source address, the tables that they lead to, and the main table."""

    facts = RoutingFacts

    def teardown(self, req: Request, host: Host, record: Record, facts: RoutingFacts) -> None:
        """Give the main table its routes again, then remove rules and tables."""
        in_container(req, host, record, lambda netns: _take_back(netns.netlink, facts))

    def teardown_unrecorded(self, req: Request, host: Host, found: Unrecorded) -> None:
        """Remove the rules from the interface's addresses, and what is in their tables.

        The routes of the main table go with the interface; they are not known.
        """
        container = host.find_netns(req.netns)
        if container is None:
            return
        netlink = container.netlink
        link = netlink.link(req.ifname)
        sources = set(found.addresses)
        if link:
            sources |= {cidr.ip for cidr, _ in netlink.addresses(link.index)}
        table = req.config.get("table", 0)
        stale = [one for one in rules_from(netlink, sources) if _may_be_ours(one, table)]
        if not stale:
            return
        other = found.other_in(host, container)
        if other:
            owner = other.attachment.containerid
            host.log(f"DEL leaves the rules for '{req.ifname}' alone: they are of {owner}")
            return
        found.exists = True
        with BestEffort() as steps:
            steps.attempt("rules", partial(_remove_rules, netlink, stale))
            if link and not table:  # that has routes of IPAM, which go with the interface
                tables = {one.table for one in stale}
                steps.attempt("tables", partial(_empty, netlink, link.index, tables))

    def refuse_living(self, req: Request, host: Host, record: Record, facts: RoutingFacts) -> None:
        """Raise CNIError 4 if the attachment is in another namespace, which is there."""
        refuse_elsewhere(req, host, record)

    def present(self, _host: Host, record: Record, facts: RoutingFacts) -> Iterator[Owned]:
        """Yield each rule and route, if the container's namespace can be entered."""
        from cni_common.node.owned import Owned, recorded_netns

        with recorded_netns(record) as container:
            if container:
                for kind, what, there in found(container.netlink, facts):
                    yield Owned(kind, what, there)


ROUTING = Routing()
LIFECYCLE = Lifecycle("sbr", ROUTING)


def found(netlink: Netlink, facts: RoutingFacts) -> Iterator[tuple[str, str, bool]]:
    """Yield kind and text of each rule and route of an attachment, and whether it is there."""
    present = {(one.source, one.table) for one in all_rules(netlink)}
    for source, table in facts.each_rule():
        yield "rule", f"from {source} to table {table}", (source, table) in present
    keys = {one.key for one in whole_routes(netlink, facts.index)}
    for text in (*facts.routes, *facts.hinted):
        route = WholeRoute.of_text(text)
        yield "route", str(route), route.key in keys


def _take_back(netlink: Netlink, facts: RoutingFacts) -> None:
    made = set(facts.each_rule())
    tables = {table for _, table in made} if facts.moved or facts.routes else set()
    with BestEffort() as steps:
        steps.attempt("routes of the main table", partial(_restore_main, netlink, facts))
        steps.attempt("rules", partial(_remove_made, netlink, made))
        steps.attempt("tables", partial(_empty, netlink, facts.index, tables))


def _restore_main(netlink: Netlink, facts: RoutingFacts) -> None:
    """Give the main table the routes that it lacks, in the order in which they were made."""
    hinted = {WholeRoute.of_text(text).key for text in facts.hinted}
    present = {one.key: one for one in whole_routes(netlink, facts.index)}
    moved = [WholeRoute.of_text(text) for text in reversed(facts.moved)]
    missing = [one for one in moved if one.key not in present]
    netlink.channel.exchange(
        [
            *(one.remove() for key, one in present.items() if key in hinted),
            *(one.add() for one in sorted(missing, key=lambda one: bool(one.gateways))),
        ],
        absent=(*PASSED, *GONE),
    )


def _remove_made(netlink: Netlink, made: Collection[tuple[Address, int]]) -> None:
    """Remove the rules of these sources and tables."""
    for version in {source.version for source, _ in made}:
        listed = rules(netlink, version)
        if listed is None:  # a kernel that lists none may have some all the same
            messages = [no_rule(*one) for one in made if one[0].version == version]
            netlink.channel.exchange(messages, absent=(*GONE, *UNSUPPORTED))
        else:
            _remove_rules(netlink, [one for one in listed if (one.source, one.table) in made])


def rules_from(netlink: Netlink, sources: Collection[Address]) -> list[Rule]:
    """Return the rules that select by one of these addresses alone."""
    return [one for one in all_rules(netlink) if one.source in sources]


def _remove_rules(netlink: Netlink, present: Sequence[Rule]) -> None:
    messages = [no_rule(rule.source, rule.table, rule.priority) for rule in present if rule.source]
    netlink.channel.exchange(messages, absent=GONE)


def _empty(netlink: Netlink, index: int, tables: Collection[int]) -> None:
    """Remove from these tables the routes over an interface."""
    routes = [one for one in whole_routes(netlink, index) if one.told.route.table in tables]
    netlink.channel.exchange([one.remove() for one in routes], absent=GONE)


def _may_be_ours(rule: Rule, table: int) -> bool:
    """Tell whether an ADD with this `table`, 0 for a chosen one, can have made a rule."""
    if table:
        return rule.table == table
    return rule.table >= FIRST_TABLE and rule.table not in RESERVED_TABLES
