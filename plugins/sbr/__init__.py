"""sbr: packets from an address of the interface are routed by a table of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel.policy_routing import WholeRoute, new_rule, whole_routes
from cni_common.node import veth
from cni_common.node.netns_lock import NetnsLock
from cni_common.spec.errors import CNIError, Code, drifted
from plugins.sbr import parts, plan
from plugins.sbr.conf import SCHEMA, Conf
from plugins.sbr.parts import LIFECYCLE, ROUTING, RoutingFacts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.rtnetlink import Netlink
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Lifecycle
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo
    from plugins.sbr.plan import Plan

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Make rules and tables, and return prevResult."""
    conf = Conf.of(req)
    result = req.require_prev_result()
    ips = veth.ips_of(result, req.ifname)
    if not ips:
        raise CNIError(
            Code.INVALID_CONFIG,
            f"No IP addresses supplied on interface: {req.ifname}; put sbr behind a plugin that"
            " gives it some",
        )
    container = host.open_netns(req.netns)
    link = _required(container, req.ifname)
    attaching = LIFECYCLE.begin(req, host, undo)
    with NetnsLock(host.state_dir, container):  # two that cross would choose the same table
        made = plan.of(container.netlink, link, ips, conf)
        attaching.note(RoutingFacts.of(link.index, made))
        attaching.take_back(ROUTING)
        _carry_out(container.netlink, made)
    return result


def delete(req: Request, host: Host) -> None:
    """Route by the main table alone: by the record of what ADD made, else by what is found."""
    LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each difference from the result of ADD."""
    conf = Conf.of(req)
    ips = veth.ips_of(req.require_prev_result(), req.ifname)
    container = host.open_netns(req.netns)
    link = _required(container, req.ifname)
    record = host.records.peek(host.records.path_of(LIFECYCLE.plugin, req.network, req.attachment))
    facts = (record.get(RoutingFacts) if record else None) or RoutingFacts()
    for kind, what, there in parts.found(container.netlink, facts):
        if not there:
            yield drifted(f"{kind} {what} is missing")
    yield from _check_main(container.netlink, link, facts)
    # Rules that others had made, the reference among them, are in no record of ours.
    others = {ip.address.ip for ip in ips} - {source for source, _ in facts.each_rule()}
    rules = parts.rules_from(container.netlink, others)
    led = {rule.source for rule in rules if conf.table in (0, rule.table)}
    for address in (ip.address.ip for ip in ips):
        if address in others - led:
            where = f"table {conf.table}" if conf.table else "a table of its own"
            yield drifted(f"no rule leads from {address} to {where}")


def gc(req: Request, host: Host) -> None:
    """Forget attachments that are gone: rules and tables went with their namespaces."""
    LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work now: 7 configuration, 50 state."""
    Conf.of(req)
    host.records.probe()


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


def _required(container: NetNS, ifname: str) -> Link:
    link = container.netlink.link(ifname)
    if link is None:
        raise CNIError(Code.INTERNAL, f"interface '{ifname}' is missing in '{container.path}'")
    return link


def _carry_out(netlink: Netlink, made: Plan) -> None:
    """Fill the tables, add the rules, and only then take the routes out of the main table."""
    netlink.channel.exchange(
        [
            *(one.add(last=True) for one in made.routes),
            *(new_rule(source, table) for source, table in made.rules),
        ]
    )
    netlink.channel.exchange(
        [*(one.remove() for one in made.moved), *(one.add() for one in made.hinted)]
    )


def _check_main(netlink: Netlink, link: Link, facts: RoutingFacts) -> Iterator[CNIError]:
    """Yield an error for each route that is in the main table again."""
    present = {one.key for one in whole_routes(netlink, link.index)}
    for moved in map(WholeRoute.of_text, facts.moved):
        if moved.key in present:
            yield drifted(f"route {moved} over '{link.name}', which was moved, is there again")
