"""The life of what an attachment has in firewalls: its record, its rules, and how they go.

Rules name addresses and bridges, not attachments, as in the reference. So whose they are is told by
the records: what another record names as well stays. Who looks at the others' records and changes
rules has the lock meanwhile, and a record goes under it with its rules.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from cni_common.node.record import Lock
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.undo import BestEffort
from plugins.firewall import cni_forward, filter_tables, isolation
from plugins.firewall.conf import (
    ADMIN_CHAIN,
    FIREWALLD,
    IPTABLES,
    ISOLATED,
    NFTABLES,
    OPEN,
    ZONE,
    Conf,
    addresses_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo
    from cni_common.spec.wire import Json

PLUGIN = "firewall"


def choose_backend(req: Request, host: Host, conf: Conf) -> str:
    """Return the backend that is asked for, or the one that suits this node."""
    if conf.backend:
        return conf.backend
    from plugins.firewall import firewalld

    if firewalld.is_running(req.environ):
        return FIREWALLD
    return NFTABLES if filter_tables.has_nftables(host.netns) else IPTABLES


def begin(req: Request, host: Host, conf: Conf, result: Result, *, undo: Undo) -> Record:
    """Write the record of what is about to be made; what an earlier ADD made goes first."""
    bridge, port = _where(host, conf, result)
    facts = {
        "netns": req.netns,
        "netns_id": host.open_netns(req.netns).identity,
        "backend": choose_backend(req, host, conf),
        "addresses": [str(address) for address in addresses_of(result)],
        "admin_chain": conf.admin_chain,
        "zone": conf.zone,
        "policy": conf.policy,
        "bridge": bridge,
        "port": port if conf.policy == ISOLATED else "",
        "stdin": req.stdin.decode("utf-8", "replace"),
        "cni_path": req.environ.get("CNI_PATH", ""),
        "bus": req.environ.get("DBUS_SYSTEM_BUS_ADDRESS", ""),
    }
    record = host.records.begin_anew(
        PLUGIN, req.network, req.attachment, facts, clear=lambda old: dissolve(req, host, old)
    )
    undo.push("firewall rules", lambda: dissolve(req, host, record))
    return record


def admit(req: Request, host: Host, record: Record) -> None:
    """Make what the record says: rules of the addresses, then of the bridge. Raises CNIError."""
    facts = record.facts
    addresses = _addresses(facts)
    backend = facts["backend"]
    with Lock(host.records):
        if backend == FIREWALLD:
            from plugins.firewall import firewalld

            firewalld.add(req.environ, facts["zone"], addresses)
        for version, own in _by_version(addresses):
            for table in filter_tables.to_admit(host.netns, version, backend):
                cni_forward.admit(table, own, facts["admin_chain"])
        if facts["policy"] == OPEN:
            return
        if backend == IPTABLES:
            _note_found(req, host, record)
        _settle(host, facts, _policies([*_others(req, host), facts], facts))
        if facts["port"] and backend != IPTABLES:
            isolation.close_port(host.netns, facts["port"])


def dissolve(req: Request, host: Host, record: Record) -> None:
    """Take back what `record` names and nobody else's does, then remove it unless a step failed."""
    with Lock(host.records):
        withdraw(req, host, record.facts)
        record.remove()


def dissolve_unrecorded(req: Request, host: Host) -> None:
    """Take back what the reference made for these addresses, or we did when the record is lost."""
    try:
        addresses = addresses_of(req.prev_result)
    except CNIError:
        return
    if not addresses:
        return
    asked = req.config.get("backend", "")
    facts = {
        "backend": FIREWALLD if asked in ("", FIREWALLD) else asked,
        "addresses": [str(address) for address in addresses],
        "zone": req.config.get("firewalldZone") or ZONE,
    }
    with Lock(host.records):
        withdraw(req, host, facts)


def withdraw(req: Request, host: Host, facts: Json) -> None:
    """Take back what `facts` tell of, except for what other records name, too. Needs the lock."""
    others = _others(req, host)
    with BestEffort() as steps:
        if facts.get("backend") == FIREWALLD:
            from plugins.firewall import firewalld

            zone = facts.get("zone", ZONE)
            in_zone = [
                one for one in others if (one.get("backend"), one.get("zone")) == (FIREWALLD, zone)
            ]
            sources = _only_in(facts, in_zone)
            steps.attempt(
                "firewalld", lambda: firewalld.remove(_environ(req, facts), zone, sources)
            )
        addresses = _only_in(facts, others)
        for version, own in _by_version(addresses):
            steps.attempt("rules", lambda: _withdraw(host, facts, version, own))  # noqa: B023 - called at once
        if facts.get("bridge") and facts.get("policy", OPEN) != OPEN:
            steps.attempt("policy", lambda: _settle(host, facts, _policies(others, facts)))
        port = facts.get("port", "")
        if port and all(one.get("port") != port for one in others):
            steps.attempt("port", lambda: isolation.open_port(host.netns, port))


def _only_in(facts: Json, others: Iterable[Json]) -> list[Address]:
    """Return the addresses that `facts` name and none of `others`."""
    held = {text for one in others for text in one.get("addresses", ())}
    return [one for one in _addresses(facts) if str(one) not in held]


def missing(req: Request, host: Host, conf: Conf, result: Result) -> str:
    """Return what is no longer as ADD made it, "" when nothing has changed."""
    facts = _own(req, host)
    backend = facts.get("backend") or choose_backend(req, host, conf)
    addresses = addresses_of(result)
    what = ""
    if backend == FIREWALLD:
        from plugins.firewall import firewalld

        what = firewalld.missing(req.environ, conf.zone, addresses)
    for version, own in _by_version(addresses):
        for table in filter_tables.to_admit(host.netns, version, backend):
            what = what or cni_forward.missing(table, own, conf.admin_chain)
    if what or conf.policy == OPEN:
        return what
    bridge, port = facts.get("bridge"), facts.get("port", "")
    if not bridge:
        bridge, port = _where(host, conf, result)
    if backend != IPTABLES:
        return isolation.missing(host.netns, bridge, conf.policy, port)
    for version in _versions(addresses):
        for table in filter_tables.to_admit(host.netns, version, backend):
            what = what or cni_forward.missing_of_policy(table, bridge, conf.policy)
    return what


def _withdraw(host: Host, facts: Json, version: int, addresses: Collection[Address]) -> None:
    admin = facts.get("admin_chain", ADMIN_CHAIN)
    for table in filter_tables.present(host.netns, version):
        cni_forward.withdraw(table, addresses, admin)


def _settle(host: Host, facts: Json, policies: Collection[str]) -> None:
    """Keep the bridge of `facts` apart as `policies` say."""
    bridge = facts["bridge"]
    if facts.get("backend") != IPTABLES:
        isolation.ensure(host.netns, bridge, policies)
        return
    if not policies and facts.get("found"):
        return  # the reference's, which may have containers there that live
    for version in _versions(_addresses(facts)):
        tables = (
            filter_tables.to_admit(host.netns, version, IPTABLES)
            if policies
            else filter_tables.present(host.netns, version)
        )
        for table in tables:
            cni_forward.isolate(table, bridge, policies)


def _note_found(req: Request, host: Host, record: Record) -> None:
    """Note whether the bridge has rules that no record of ours tells of."""
    facts = record.facts
    same = [one for one in _others(req, host) if _is_same_bridge(one, facts)]
    found = any(one.get("found") for one in same)
    if not same:
        found = any(
            cni_forward.is_isolated(table, facts["bridge"])
            for version in _versions(_addresses(facts))
            for table in filter_tables.to_admit(host.netns, version, IPTABLES)
        )
    if found:
        record.note(found=True)


def _others(req: Request, host: Host) -> list[Json]:
    """Return what the records of all other attachments say."""
    own = (req.network, req.containerid, req.ifname)
    return [one for one in host.records.survey(PLUGIN) if _owner(one) != own]


def _own(req: Request, host: Host) -> Json:
    own = (req.network, req.containerid, req.ifname)
    return next((one for one in host.records.survey(PLUGIN) if _owner(one) == own), {})


def _owner(facts: Json) -> tuple[object, ...]:
    return facts.get("network"), facts.get("containerid"), facts.get("ifname")


def _is_same_bridge(one: Json, facts: Json) -> bool:
    """Tell whether both have rules for one bridge in one place."""
    places = {one.get("backend") == IPTABLES, facts.get("backend") == IPTABLES}
    return one.get("bridge") == facts["bridge"] and len(places) == 1


def _policies(records: Collection[Json], facts: Json) -> set[str]:
    """Return the policies that records have for the bridge of `facts`."""
    found = {one.get("policy", OPEN) for one in records if _is_same_bridge(one, facts)}
    return found - {OPEN}


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


def _addresses(facts: Json) -> list[Address]:
    return [ip_address(text) for text in facts.get("addresses", ())]


def _versions(addresses: Collection[Address]) -> list[int]:
    return sorted({address.version for address in addresses})


def _by_version(addresses: Sequence[Address]) -> list[tuple[int, list[Address]]]:
    return [
        (version, [one for one in addresses if one.version == version])
        for version in _versions(addresses)
    ]


def _environ(req: Request, facts: Json) -> Mapping[str, str]:
    """Return the variables by which ADD has found firewalld."""
    bus = facts.get("bus", "")
    return {**req.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus} if bus else req.environ
