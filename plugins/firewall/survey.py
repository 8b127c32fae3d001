"""What is in the node's firewalls by now, for who looks after the node."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from cni_common.node.record import Lock
from plugins.firewall import cni_forward, filter_tables, isolation
from plugins.firewall.conf import ADMIN_CHAIN, FIREWALLD, IPTABLES, ISOLATED, OPEN
from plugins.firewall.parts import PLUGIN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.spec.names import Address
    from cni_common.spec.wire import Json


def admitted(netns: NetNS) -> list[tuple[str, Address]]:
    """Return each table with each address that it lets through, ours or the reference's."""
    return [
        (table.name, address)
        for version in filter_tables.VERSIONS
        for table in filter_tables.present(netns, version)
        for address in cni_forward.admitted(table)
    ]


def remove_address(host: Host, address: Address) -> bool:
    """Take back the rules of an address that no record names; False when one does by now."""
    with Lock(host.records):
        if any(str(address) in one.get("addresses", ()) for one in host.records.survey(PLUGIN)):
            return False
        for table in filter_tables.present(host.netns, address.version):
            cni_forward.withdraw(table, [address], ADMIN_CHAIN)
    return True


def idle_policies(host: Host) -> list[tuple[str, str]]:
    """Return set and member of what keeps a bridge or port apart that no record names."""
    present = [(isolation.BRIDGES, name) for name in isolation.bridges(host.netns)]
    present += [(isolation.PORTS, name) for name in isolation.ports(host.netns)]
    named = {
        pair
        for one in host.records.survey(PLUGIN)
        if one.get("policy", OPEN) != OPEN and one.get("backend") != IPTABLES
        for pair in (
            (isolation.BRIDGES, one.get("bridge")),
            (isolation.PORTS, one.get("port")),
        )
    }
    return [pair for pair in present if pair not in named]


def remove_policy(host: Host, pair: tuple[str, str]) -> bool:
    """Take back what keeps a bridge or port apart; False when a record names it by now."""
    with Lock(host.records):
        if pair not in idle_policies(host):
            return False
        if pair[0] == isolation.PORTS:
            isolation.open_port(host.netns, pair[1])
        else:
            isolation.ensure(host.netns, pair[1], ())
    return True


def owned(host: Host, facts: Json) -> Iterator[tuple[str, bool]]:
    """Yield what a record says was made, and whether it is there."""
    netns, zone = host.netns, facts.get("zone", "")
    for address in map(ip_address, facts.get("addresses", ())):
        if facts.get("backend") == FIREWALLD:
            yield f"source {address} of zone '{zone}' of firewalld", _is_source(facts, address)
        tables = filter_tables.present(netns, address.version)
        holding = [one.name for one in tables if address in cni_forward.admitted(one)]
        if holding or facts.get("backend") != FIREWALLD:
            where = ", ".join(holding) or "table filter"
            yield f"rules of {address} in {cni_forward.ALLOWED} of {where}", bool(holding)
    bridge, policy, port = (facts.get(key, "") for key in ("bridge", "policy", "port"))
    if policy in ("", OPEN):
        return
    if facts.get("backend") == IPTABLES:
        tables = [
            one
            for version in filter_tables.VERSIONS
            for one in filter_tables.present(netns, version)
        ]
        isolated = any(cni_forward.is_isolated(table, bridge) for table in tables)
        yield f"rules of bridge '{bridge}', {policy}, in {cni_forward.STAGE_1}", isolated
        return
    yield f"bridge '{bridge}' in set '{isolation.BRIDGES}'", bridge in isolation.bridges(netns)
    if policy == ISOLATED and port:
        yield f"port '{port}' in set '{isolation.PORTS}'", port in isolation.ports(netns)


def _is_source(facts: Json, address: Address) -> bool:
    from cni_common.spec.errors import CNIError
    from plugins.firewall import firewalld

    bus = facts.get("bus", "")
    environ: Mapping[str, str] = {"DBUS_SYSTEM_BUS_ADDRESS": bus} if bus else {}
    try:
        return not firewalld.missing(environ, facts.get("zone", ""), [address])
    except CNIError:
        return False
