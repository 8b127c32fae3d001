"""The parts of a firewall attachment: rules for its addresses, and for its bridge.

Rules name addresses and bridges, not attachments, as in the reference. Their owners are known by
the records alone: a rule stays while another record names the same address or bridge. The lock over
all records is held while other records are read and rules are changed; a record goes under it with
its rules.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.lifecycle import Lifecycle, Part
from cni_common.node.record import Lock
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.undo import BestEffort
from plugins.firewall import cni_forward, filter_tables, isolation, ledger
from plugins.firewall.conf import (
    FIREWALLD,
    IPTABLES,
    ISOLATED,
    NFTABLES,
    OPEN,
    PLUGIN,
    ZONE,
    Conf,
    addresses_of,
)
from plugins.firewall.facts import FirewallFacts, IsolationFacts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from typing import TypeVar

    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching, Unrecorded
    from cni_common.node.owned import Owned, Stray
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo
    from plugins.firewall.filter_tables import Filter

    Facts = TypeVar("Facts")


class Firewall(Part):
    """Rules of the addresses."""

    facts = FirewallFacts

    def teardown(self, req: Request, host: Host, record: Record, facts: FirewallFacts) -> None:
        """Remove the rules of those addresses that no other record names."""
        _withdraw(req, host, record, facts)

    def teardown_unrecorded(self, req: Request, host: Host, _found: Unrecorded) -> None:
        """Remove what the reference made for the addresses, or we did when the record is lost."""
        try:
            addresses = addresses_of(req.prev_result)
        except CNIError:
            return
        if not addresses:
            return
        asked = req.config.get("backend", "")
        facts = FirewallFacts(
            FIREWALLD if asked in ("", FIREWALLD) else asked,
            [str(address) for address in addresses],
            zone=req.config.get("firewalldZone") or ZONE,
        )
        with Lock(host.records):
            _withdraw(req, host, None, replace(facts, in_zone=False))
            if facts.backend == FIREWALLD:
                _ask_firewalld(req, host, facts)

    def restore(self, req: Request, host: Host, record: Record, facts: FirewallFacts) -> None:
        """Admit the addresses again; remaining rules are replaced."""
        with Lock(host.records):
            if facts.backend == FIREWALLD and facts.in_zone:
                _return_to_zone(req, facts)
            for version in facts.versions:
                for table in filter_tables.present(host.netns, version):
                    _remove_rules(host, record, table, facts)
            facts = replace(facts, handles=[])  # another table may have such handles by now
            record.put(facts)
            _admit_by_rules(host, record, facts)

    def present(self, host: Host, _record: Record, facts: FirewallFacts) -> Iterator[Owned]:
        """Yield the rules of each address."""
        from plugins.firewall import inspection

        return inspection.rules(host, facts)

    def strays(self, host: Host) -> list[Stray]:
        """Return the accepted addresses, ours or the reference's."""
        from plugins.firewall import inspection

        return inspection.stray_rules(host)

    def claims(self, record: Record) -> Sequence[str]:
        """Return the addresses."""
        facts = record.get(FirewallFacts)
        return facts.addresses if facts else ()

    def addresses(self, facts: FirewallFacts) -> Sequence[str]:
        """Return the addresses."""
        return facts.addresses


class Isolation(Part):
    """Isolation of a bridge or its ports."""

    facts = IsolationFacts

    def teardown(self, req: Request, host: Host, record: Record, facts: IsolationFacts) -> None:
        """Remove the isolation, except for rules that another record needs."""
        rules = record.get(FirewallFacts) or FirewallFacts()
        with BestEffort() as steps:
            if facts.bridge and facts.policy != OPEN and not _stays(host, record, facts):
                policies = _policies(host, record)
                steps.attempt("bridge", lambda: _ensure_policies(host, rules, facts, policies))
            if facts.port:  # the end of one pair, so no other attachment's
                steps.attempt("port", lambda: isolation.open_port(host.netns, facts.port))

    def restore(self, _req: Request, host: Host, record: Record, facts: IsolationFacts) -> None:
        """Keep bridge and port apart again."""
        with Lock(host.records):
            _keep_apart(host, record, record.get(FirewallFacts) or FirewallFacts(), facts)

    def present(self, host: Host, record: Record, facts: IsolationFacts) -> Iterator[Owned]:
        """Yield what keeps bridge and port apart."""
        from plugins.firewall import inspection

        return inspection.policies(host, record.get(FirewallFacts) or FirewallFacts(), facts)

    def strays(self, host: Host) -> list[Stray]:
        """Return what keeps a bridge or port apart that no record names."""
        from plugins.firewall import inspection

        return inspection.stray_policies(host)


LIFECYCLE = Lifecycle(PLUGIN, Firewall(), Isolation(), locked=True)


def choose_backend(req: Request, host: Host, conf: Conf) -> str:
    """Return the backend that is asked for, or the one that suits this node."""
    if conf.backend:
        return conf.backend
    from plugins.firewall import firewalld

    if firewalld.is_running(req.environ):
        return FIREWALLD
    return NFTABLES if filter_tables.has_nftables(host.netns) else IPTABLES


def begin(req: Request, host: Host, conf: Conf, result: Result, *, undo: Undo) -> Attaching:
    """Write the record of rules that are about to be made; those of an earlier ADD go first."""
    bridge, port = _where(host, conf, result)
    backend = choose_backend(req, host, conf)
    addresses = addresses_of(result)
    for version in _versions(addresses):
        # A table that cannot be read cannot be cleared either, so nothing may be noted before.
        for table in filter_tables.present(host.netns, version):
            table.look(cni_forward.ALLOWED)
    rules = FirewallFacts(
        backend,
        [str(address) for address in addresses],
        conf.admin_chain,
        conf.zone,
        req.environ.get("DBUS_SYSTEM_BUS_ADDRESS", ""),
    )
    if conf.policy == OPEN:
        return LIFECYCLE.begin(req, host, undo, rules)
    policy = IsolationFacts(conf.policy, bridge, port if conf.policy == ISOLATED else "")
    return LIFECYCLE.begin(req, host, undo, rules, policy)


def admit(req: Request, host: Host, attaching: Attaching) -> None:
    """Make the rules of the record: rules of the addresses, then of the bridge. Raises CNIError."""
    record = attaching.record
    rules, policy = record.get(FirewallFacts), record.get(IsolationFacts)
    assert rules is not None, "begin has noted them"
    with Lock(host.records):
        if rules.backend == FIREWALLD:
            rules = _admit_by_firewalld(req, host, attaching, rules)
        _admit_by_rules(host, record, rules)
        if policy is None:
            return
        if rules.backend == IPTABLES and _has_unrecorded(host, record):
            policy = replace(policy, found=True)
            attaching.note(policy)
        _keep_apart(host, record, rules, policy)


def _keep_apart(host: Host, record: Record, rules: FirewallFacts, policy: IsolationFacts) -> None:
    """Keep the bridge apart as all records want it, and the port as this one does."""
    if not _is_as(host, rules, policy):
        policies = {policy.policy, *_policies(host, record)}
        _ensure_policies(host, rules, policy, policies)
    if policy.port and rules.backend != IPTABLES:
        isolation.close_port(host.netns, policy.port)


def _admit_by_firewalld(
    req: Request, host: Host, attaching: Attaching, rules: FirewallFacts
) -> FirewallFacts:
    """Put the addresses into the zone; return what the record says then. Raises CNIError.

    Where the configuration names no backend, nftables does it if firewalld does not serve us.
    """
    from plugins.firewall import firewalld

    try:
        firewalld.add(req.environ, rules.zone, rules.parsed)
    except CNIError as error:
        rules = replace(rules, in_zone=False)
        if error.code == Code.PLUGIN_NOT_AVAILABLE and not req.config.get("backend"):
            host.log(f"{error.msg}: takes nftables instead, since no backend is named")
            usable = filter_tables.has_nftables(host.netns)
            rules = replace(rules, backend=NFTABLES if usable else IPTABLES)
        attaching.note(rules)
        if rules.backend == FIREWALLD:
            raise
    return rules


def _return_to_zone(req: Request, facts: FirewallFacts) -> None:
    """Put those addresses back into their zone that firewalld has lost. Raises CNIError."""
    from plugins.firewall import firewalld

    environ = facts.environ(req.environ)
    lost = [one for one in facts.parsed if any(firewalld.missing(environ, facts.zone, [one]))]
    firewalld.add(environ, facts.zone, lost)


def _admit_by_rules(host: Host, record: Record, rules: FirewallFacts) -> None:
    """Make the rules of table filter, and note their handles."""
    handles: list[int] = []
    for version, own in _by_version(rules.parsed):
        for table in filter_tables.to_admit(host.netns, version, rules.backend):
            if isinstance(table, filter_tables.NftFilter):
                held = partial(_handles, host, version)
                handles += ledger.admit(host, table, own, admin=rules.admin_chain, held=held)
            else:
                cni_forward.admit(table, own, rules.admin_chain)
    if len(handles) == 2 * len(rules.addresses) > 0:
        record.put(replace(rules, handles=handles))


def _handles(host: Host, version: int) -> set[int]:
    """Return the handles in all records, of rules of one IP version."""
    everything = _each(_others(host, None), FirewallFacts)
    return {handle for facts in everything for handle in facts.handles_of(version)}


def _withdraw(req: Request, host: Host, record: Record | None, facts: FirewallFacts) -> None:
    """Remove the rules of `facts`, but not what other records name, too. Needs the lock."""
    with BestEffort() as steps:
        if facts.backend == FIREWALLD and facts.in_zone:
            steps.attempt("firewalld", lambda: _leave_zone(req, host, record, facts))
        for version in facts.versions:
            for table in filter_tables.present(host.netns, version):
                steps.attempt(table.name, partial(_remove_rules, host, record, table, facts))


def _leave_zone(req: Request, host: Host, record: Record | None, facts: FirewallFacts) -> None:
    """Remove the addresses from their zone but for those that another record has there."""
    from plugins.firewall import firewalld

    others = _each(_others(host, record), FirewallFacts)
    in_zone = [one for one in others if (one.backend, one.zone) == (FIREWALLD, facts.zone)]
    firewalld.remove(facts.environ(req.environ), facts.zone, _only_in(facts, in_zone))


def _ask_firewalld(req: Request, host: Host, facts: FirewallFacts) -> None:
    """Remove addresses from their zone that no record tells of: they may never have been there."""
    try:
        _leave_zone(req, host, None, facts)
    except CNIError as error:
        host.log(f"{error.msg}; no record tells of addresses there")


def _remove_rules(
    host: Host,
    record: Record | None,
    table: Filter,
    facts: FirewallFacts,
) -> None:
    """Remove rules by the handles in the record, or else by what they say."""
    if isinstance(table, filter_tables.NftFilter):
        handles = facts.handles_of(table.version)
        own = [one for one in facts.parsed if one.version == table.version]
        admin = facts.admin_chain
        if handles and ledger.withdraw(host, table, own, admin=admin, handles=handles):
            return
        ledger.forget(host)
    others = list(_each(_others(host, record), FirewallFacts))
    if isinstance(table, filter_tables.NftFilter):
        # These have rules of their own beside those of `facts`.
        table.held = {handle for one in others for handle in one.handles_of(table.version)}
        others = [one for one in others if not one.handles]
    free = [one for one in _only_in(facts, others) if one.version == table.version]
    cni_forward.withdraw(table, free, facts.admin_chain)


def _only_in(facts: FirewallFacts, others: Iterable[FirewallFacts]) -> list[Address]:
    """Return the addresses that `facts` name and none of `others`."""
    held = {text for one in others for text in one.addresses}
    return [one for one in facts.parsed if str(one) not in held]


def missing(req: Request, host: Host, conf: Conf, result: Result) -> Iterator[str]:
    """Yield each difference from the state that ADD made."""
    record = _own(req, host)
    rules = record.get(FirewallFacts) if record else None
    policy = record.get(IsolationFacts) if record else None
    backend = rules.backend if rules else choose_backend(req, host, conf)
    addresses = addresses_of(result)
    if backend == FIREWALLD:
        from plugins.firewall import firewalld

        yield from firewalld.missing(req.environ, conf.zone, addresses)
    for version, own in _by_version(addresses):
        for table in filter_tables.to_admit(host.netns, version, backend):
            yield from _missing_of(host, table, own, conf.admin_chain, rules)
    if conf.policy == OPEN:
        return
    bridge, port = (policy.bridge, policy.port) if policy else _where(host, conf, result)
    if backend != IPTABLES:
        yield from isolation.missing(host.netns, bridge, conf.policy, port)
        return
    for version in _versions(addresses):
        for table in filter_tables.to_admit(host.netns, version, backend):
            yield from cni_forward.missing_of_policy(table, bridge, conf.policy)


def _missing_of(  # noqa: PLR0917 - of one table
    host: Host, table: Filter, addresses: Sequence[Address], admin: str, facts: FirewallFacts | None
) -> Iterator[str]:
    """Yield each rule of `addresses` that is missing in a table."""
    if facts and isinstance(table, filter_tables.NftFilter):
        handles = facts.handles_of(table.version)
        if handles and ledger.holds(host, table, addresses, admin=admin, handles=handles):
            return
    yield from cni_forward.missing(table, addresses, admin)


def _ensure_policies(
    host: Host, rules: FirewallFacts, policy: IsolationFacts, policies: Collection[str]
) -> None:
    """Keep the bridge of `policy` apart as `policies` say."""
    if rules.backend != IPTABLES:
        isolation.ensure(host.netns, policy.bridge, policies)
        return
    if not policies and policy.found:
        return  # the reference's, which may have containers there that live
    for version in rules.versions:
        tables = (
            filter_tables.to_admit(host.netns, version, IPTABLES)
            if policies
            else filter_tables.present(host.netns, version)
        )
        for table in tables:
            cni_forward.isolate(table, policy.bridge, policies)


def _is_as(host: Host, rules: FirewallFacts, policy: IsolationFacts) -> bool:
    """Tell whether the bridge of `policy` is kept apart just as that says."""
    if rules.backend != IPTABLES:
        return isolation.is_as(host.netns, policy)
    drift = (
        what
        for version in rules.versions
        for table in filter_tables.to_admit(host.netns, version, IPTABLES)
        for what in cni_forward.missing_of_policy(table, policy.bridge, policy.policy)
    )
    return next(drift, None) is None


def _stays(host: Host, record: Record, facts: IsolationFacts) -> bool:
    """Tell whether the bridge stays as it is when `record` goes, since another record needs that.

    As a rule one does, and the first that is read tells.
    """
    needed = {ISOLATED} if facts.policy == ISOLATED else {ISOLATED, facts.policy}
    if any(one.policy in needed for one in _on_bridge(host, record)):
        return True
    return _may_need_policies(host, _others(host, record))


def _has_unrecorded(host: Host, record: Record) -> bool:
    """Tell whether the bridge has rules without a record of ours: all records of a bridge agree."""
    rules, policy = record.get(FirewallFacts), record.get(IsolationFacts)
    same = next(_on_bridge(host, record), None)
    if same:
        return same.found
    return any(
        cni_forward.is_isolated(table, policy.bridge)
        for version in (rules.versions if rules and policy else ())
        for table in filter_tables.to_admit(host.netns, version, IPTABLES)
        if policy
    )


def _others(host: Host, record: Record | None) -> Iterator[Record]:
    """Yield the records of all attachments but that of `record`, each when it is asked for."""
    own = record.path if record else ""
    return (one for one in host.records.of_plugin(LIFECYCLE.plugin) if one.path != own)


def _on_bridge(host: Host, record: Record) -> Iterator[IsolationFacts]:
    """Yield the policies of other records for the bridge of `record`."""
    return _each(
        (one for one in _others(host, record) if _is_same_bridge(one, record)), IsolationFacts
    )


def _own(req: Request, host: Host) -> Record | None:
    return host.records.peek(host.records.path_of(LIFECYCLE.plugin, req.network, req.attachment))


def _may_need_policies(host: Host, others: Iterable[Record]) -> bool:
    """Tell whether a record cannot be read: its attachment may rely on any bridge's isolation."""
    damaged = next((one.path for one in others if one.damage), "")
    if damaged:
        host.log(f"keeps isolated bridges as they are: record '{damaged}' is damaged")
    return bool(damaged)


def _each(records: Iterable[Record], facts_type: type[Facts]) -> Iterator[Facts]:
    """Yield what `records` say of one part."""
    found = (record.get(facts_type) for record in records)
    return (facts for facts in found if facts is not None)


def _is_same_bridge(one: Record, other: Record) -> bool:
    """Tell whether both have rules for one bridge in one place."""
    bridges, places = set(), set()
    for record in (one, other):
        rules, policy = record.get(FirewallFacts), record.get(IsolationFacts)
        bridges.add(policy.bridge if policy else "")
        places.add(rules.backend == IPTABLES if rules else False)
    return "" not in bridges and len(bridges) == len(places) == 1


def _policies(host: Host, record: Record) -> set[str]:
    """Return the policies that other records have for the bridge of `record`.

    The strictest counts, so records are read only until that is found.
    """
    found: set[str] = set()
    for one in _on_bridge(host, record):
        found |= {one.policy} - {OPEN}
        if ISOLATED in found:
            break
    return found


def _where(host: Host, conf: Conf, result: Result) -> tuple[str, str]:
    """Return the interface of the host that the policy is about, and the port behind it."""
    if conf.policy == OPEN:
        return "", ""
    names = [interface.name for interface in result.interfaces if not interface.sandbox]
    links = {name: host.netns.netlink.link(name) for name in names}
    bridge = next((name for name, link in links.items() if link and link.kind == "bridge"), "")
    if not bridge and not names:
        raise CNIError(
            Code.INVALID_CONFIG,
            f'"ingressPolicy" is {conf.policy}, and prevResult has no interface of the host'
            " whose traffic could be told by it",
        )
    if not bridge:
        return names[0], ""
    index = getattr(links[bridge], "index", 0)
    port = next((name for name, link in links.items() if link and link.master == index), "")
    return bridge, port


def _versions(addresses: Collection[Address]) -> list[int]:
    return sorted({address.version for address in addresses})


def _by_version(addresses: Sequence[Address]) -> list[tuple[int, list[Address]]]:
    return [
        (version, [one for one in addresses if one.version == version])
        for version in _versions(addresses)
    ]
