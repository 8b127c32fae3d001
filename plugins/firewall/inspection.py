"""The rules in the node's firewalls, for the operators' commands."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.owned import Owned, Stray, lost_rules
from cni_common.node.record import Lock
from plugins.firewall import cni_forward, filter_tables, isolation
from plugins.firewall.conf import ADMIN_CHAIN, FIREWALLD, IPTABLES, ISOLATED, OPEN, PLUGIN
from plugins.firewall.facts import FirewallFacts, IsolationFacts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.spec.names import Address
    from plugins.firewall.filter_tables import Filter

_KIND = "firewall"


def rules(host: Host, facts: FirewallFacts) -> Iterator[Owned]:
    """Yield what lets each address through, and whether it is there."""
    for address in facts.parsed:
        if facts.backend == FIREWALLD:
            what = f"source {address} of zone '{facts.zone}' of firewalld"
            yield Owned(_KIND, what, _is_source(facts, address))
        tables = filter_tables.present(host.netns, address.version)
        holding = [one for one in tables if _admits(one, address, facts)]
        if holding or facts.backend != FIREWALLD:
            where = ", ".join(one.name for one in holding) or "table filter"
            what = f"rules of {address} in {cni_forward.ALLOWED} of {where}"
            yield Owned(_KIND, what, bool(holding))
        for table in holding:
            for what in cni_forward.lost_jumps(table, facts.admin_chain):
                yield Owned(_KIND, f"{what} of {table.name}", present=False, shared=True)


def policies(host: Host, rules: FirewallFacts, facts: IsolationFacts) -> Iterator[Owned]:
    """Yield what keeps a bridge and its port apart, and whether it is there."""
    netns, bridge = host.netns, facts.bridge
    if facts.policy == OPEN:
        return
    if rules.backend == IPTABLES:
        tables = [
            one
            for version in filter_tables.VERSIONS
            for one in filter_tables.present(netns, version)
        ]
        isolated = [table for table in tables if cni_forward.is_isolated(table, bridge)]
        what = f"rules of bridge '{bridge}', {facts.policy}, in {cni_forward.STAGE_1}"
        whole = bool(isolated) and all(cni_forward.is_whole(one, bridge) for one in isolated)
        yield Owned(_KIND, what, whole)
        return
    there = bridge in isolation.bridges(netns)
    yield Owned(_KIND, f"bridge '{bridge}' in set '{isolation.BRIDGES}'", there)
    yield from lost_rules(_KIND, isolation.LAYOUT, netns)
    if facts.policy == ISOLATED and facts.port:
        there = facts.port in isolation.ports(netns)
        yield Owned(_KIND, f"port '{facts.port}' in set '{isolation.PORTS}'", there)
        yield from lost_rules(_KIND, isolation.PORTS_LAYOUT, netns)


def stray_rules(host: Host) -> list[Stray]:
    """Return what lets addresses through, ours or the reference's."""
    return [
        Stray(
            _KIND,
            f"rules of {address} in {table.name}",
            (),
            owner=str(address),
            addresses=frozenset([address]),
            reason="no record names it, and the address is in no namespace",
            remove=partial(_remove_address, host, address),
        )
        for version in filter_tables.VERSIONS
        for table in filter_tables.present(host.netns, version)
        for address in cni_forward.admitted(table)
    ]


def stray_policies(host: Host) -> list[Stray]:
    """Return what keeps a bridge or port apart that no record names."""
    return [
        Stray(
            _KIND,
            f"'{pair[1]}' in set '{pair[0]}'",
            (),
            owner="",
            addresses=frozenset(),
            reason="no record has an ingress policy for it",
            remove=partial(_remove_policy, host, pair),
            idle=True,
        )
        for pair in _idle_policies(host)
    ]


def _admits(table: Filter, address: Address, facts: FirewallFacts) -> bool:
    """Tell whether a table accepts packets of an address: by the rules' handles, or by a list."""
    handles = facts.handles_of(table.version)
    own = [one for one in facts.parsed if one.version == table.version]
    if isinstance(table, filter_tables.NftFilter) and len(handles) == 2 * len(own):
        at = 2 * own.index(address)
        pairs = zip(handles[at : at + 2], cni_forward.lines_of([address]), strict=True)
        if all(table.is_rule(cni_forward.ALLOWED, handle, line) for handle, line in pairs):
            return True
    return address in cni_forward.admitted(table)


def _remove_address(host: Host, address: Address) -> None:
    """Remove the rules of an address unless a record names it by now."""
    with Lock(host.records):
        for record in host.records.of_plugin(PLUGIN):
            facts = record.get(FirewallFacts)
            if facts and str(address) in facts.addresses:
                return
        for table in filter_tables.present(host.netns, address.version):
            cni_forward.withdraw(table, [address], ADMIN_CHAIN)


def _idle_policies(host: Host) -> list[tuple[str, str]]:
    """Return set and member of what keeps a bridge or port apart that no record names."""
    present = [(isolation.BRIDGES, name) for name in isolation.bridges(host.netns)]
    present += [(isolation.PORTS, name) for name in isolation.ports(host.netns)]
    named: set[tuple[str, str]] = set()
    for record in host.records.of_plugin(PLUGIN):
        rules, policy = record.get(FirewallFacts), record.get(IsolationFacts)
        if policy and policy.policy != OPEN and rules and rules.backend != IPTABLES:
            named |= {(isolation.BRIDGES, policy.bridge), (isolation.PORTS, policy.port)}
    return [pair for pair in present if pair not in named]


def _remove_policy(host: Host, pair: tuple[str, str]) -> None:
    """Remove what keeps a bridge or port apart unless a record names it by now."""
    with Lock(host.records):
        if pair not in _idle_policies(host):
            return
        if pair[0] == isolation.PORTS:
            isolation.open_port(host.netns, pair[1])
        else:
            isolation.ensure(host.netns, pair[1], ())


def _is_source(facts: FirewallFacts, address: Address) -> bool:
    from cni_common.spec.errors import CNIError
    from plugins.firewall import firewalld

    try:
        return not any(firewalld.missing(facts.environ({}), facts.zone, [address]))
    except CNIError:
        return False
