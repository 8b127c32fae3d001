"""The life of an attachment's mappings: its record, and how they are taken apart."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cni_common.node.liveness import Liveness, State, describe, owner_of, state_of
from cni_common.node.liveness import collect as collect_recorded
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import Attachment
from cni_common.spec.undo import BestEffort
from plugins.portmap import conntrack, nftables, route_localnet, shared_ports
from plugins.portmap.conf import IPTABLES, NFTABLES, PLUGIN, Conf
from plugins.portmap.shared_ports import owner

if TYPE_CHECKING:
    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo
    from cni_common.spec.wire import Json


def way_of_localhost(host: Host, conf: Conf) -> route_localnet.Way:
    """Return how connections from 127.0.0.1 would leave for the container."""

    def was_ours(name: str) -> bool:
        return any(facts.get("localnet") == name for facts in host.records.survey(PLUGIN))

    if not conf.opens_localhost:
        return route_localnet.Way()
    return route_localnet.find(host.netns, conf.addresses[4].ip, was_ours)


def begin(req: Request, host: Host, conf: Conf, *, way: route_localnet.Way, undo: Undo) -> Record:
    """Write the record of mappings that are about to be made.

    What an interrupted ADD of the same attachment has left is taken apart first; mappings that are
    there, for a namespace that lives, are refused by CNIError 4.
    """
    facts = {
        "netns": req.netns,
        "netns_id": host.open_netns(req.netns).identity,
        "backend": conf.backend,
        "localnet": way.name if way.ours else "",
        "localnet_private": way.private,
        "ports": [
            [port.protocol, port.host_port, str(port.only_at or ""), cidr.version]
            for port, cidr in conf.targets()
        ],
        "udp": [
            [cidr.version, port.host_port, cidr.ip.packed.hex(), port.container_port]
            for port, cidr in conf.targets()
            if port.protocol == "udp"
        ],
    }
    if conf.backend == NFTABLES:
        facts |= nftables.facts_of(conf)

    def clear(old: Record) -> None:
        _refuse_living(req, host, old)
        host.log(f"taking apart what an interrupted ADD of {req.containerid} has left")
        dissolve(req, host, old)

    record = host.records.begin_anew(PLUGIN, req.network, req.attachment, facts, clear=clear)
    # The last to go, and only when nothing is left that it could be needed for.
    undo.push("record", lambda: None if undo.failed else record.remove())
    return record


def dissolve(req: Request, host: Host, record: Record) -> None:
    """Take apart what `record` names, then remove it; it stays when a step fails."""
    unmap(req, host, record.facts)
    record.remove()


def unmap(req: Request, host: Host, facts: Json) -> None:
    """Take back the mappings that `facts` tell of."""
    with BestEffort() as steps:
        if facts.get("localnet_private") and facts.get("localnet"):
            name = facts["localnet"]
            steps.attempt("route_localnet", lambda: route_localnet.forget(host.netns, name))
        steps.attempt("port mappings", lambda: _unmap(req, host, facts))
        if facts.get("udp"):
            steps.attempt("connections", lambda: _forget_connections(host, facts))


def dissolve_unrecorded(req: Request, host: Host) -> None:
    """Take apart mappings without a record: the reference's, or ours when the record is lost."""
    conf = Conf.of_leftover(req)
    if not conf.ports:
        return
    from plugins.portmap import iptables

    with BestEffort() as steps:
        facts = nftables.facts_of(conf)
        steps.attempt("port mappings", lambda: nftables.remove(host, facts, owner(req), {}))
        chain = iptables.chain_of(req.network, req.attachment)
        steps.attempt("port mappings in iptables", lambda: iptables.remove(host, chain))
        steps.attempt(
            "port mappings of the reference",
            lambda: iptables.remove_of_reference(host, conf, req.network, req.containerid),
        )


def refuse_taken_ports(req: Request, host: Host, conf: Conf) -> None:
    """Raise CNIError when another attachment that is not GONE has one of the ports.

    Only for iptables: nftables itself tells whose a port is.
    """
    wanted = {
        (port.protocol, port.host_port, str(port.only_at or ""), cidr.version): port
        for port, cidr in conf.targets()
    }
    liveness = Liveness(host)
    for facts in host.records.survey(PLUGIN):
        whose = owner_of(PLUGIN, facts)
        taken = [wanted[key] for key in map(tuple, facts.get("ports", ())) if key in wanted]
        same = facts.get("containerid") == req.containerid  # the rule that is first serves
        if not taken or same:
            continue
        state, reason = liveness.assess(facts)
        if state is not State.GONE:
            raise nftables.taken(f"host port {taken[0]}", describe(whose, state, reason))


def collect(req: Request, host: Host, steps: BestEffort) -> None:
    """Take apart the mappings of every attachment of this network that the runtime does not name.

    Left alone are those that are young, are being worked on, or are not GONE.
    """
    collect_recorded(
        PLUGIN, req, host, steps, dissolve=lambda gone, record: dissolve(gone, host, record)
    )
    valid = req.valid_attachments
    if valid is not None:
        steps.attempt("elements", lambda: _collect_unrecorded(req, host, valid))


def _collect_unrecorded(req: Request, host: Host, valid: frozenset[Attachment]) -> None:
    present = nftables.owners(host.netns)
    # A record is there before all the rest, so it is looked for after that.
    recorded = {owner_of(PLUGIN, facts) for facts in host.records.survey(PLUGIN)}
    gone = False
    for text, keys in present.items():
        parts = text.split(" ")
        if parts[:2] != [PLUGIN, req.network] or len(parts) != 4 or text in recorded:
            continue
        if Attachment(parts[2], parts[3]) not in valid:
            host.log(f"GC removes {len(keys)} elements: no record of {text}")
            nftables.remove_elements(host.netns, keys, text)
            gone = True
    if gone:
        nftables.remove_all_unused(host)


def _unmap(req: Request, host: Host, facts: Json) -> None:
    if facts.get("backend") == IPTABLES:
        from plugins.portmap import iptables

        iptables.remove(host, iptables.chain_of(req.network, req.attachment))
        route_localnet.remove_with_base(host)
    else:
        shared_ports.pass_on(req, host, facts)


def _forget_connections(host: Host, facts: Json) -> None:
    try:
        conntrack.forget_redirected(host.netns, facts["udp"])
    except OSError as error:  # the mappings are gone, and the connections end by themselves
        host.log(f"connections to the ports were not forgotten: {error}")


def _refuse_living(req: Request, host: Host, record: Record) -> None:
    facts = record.facts
    if facts.get("backend") == IPTABLES:
        from plugins.portmap import iptables

        present = iptables.is_there(host.netns, iptables.chain_of(req.network, req.attachment))
    else:
        present = nftables.is_there(host.netns, facts, owner(req))
    if present and state_of(host, facts) is not State.GONE:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - record.age()))
        raise CNIError(
            Code.INVALID_ENVIRONMENT,
            f"the ports of container {req.containerid} on '{req.network}', {req.ifname}, are"
            f" mapped since {since}; DEL it first",
        )
