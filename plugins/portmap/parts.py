"""The parts of a portmap attachment: host ports, route_localnet and UDP connections."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.lifecycle import Lifecycle, Part
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import Attachment
from cni_common.spec.undo import BestEffort
from plugins.portmap import conntrack, nftables, route_localnet, shared_ports
from plugins.portmap.claims import HostPortsFacts, spans_of
from plugins.portmap.conf import IPTABLES, NFTABLES, PLUGIN, Conf
from plugins.portmap.shared_ports import owner, owner_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching, Unrecorded
    from cni_common.node.owned import Owned, Stray, Usage
    from cni_common.node.record import Record
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo


class HostPorts(Part):
    """The elements of nftables, or the chain of iptables."""

    facts = HostPortsFacts
    derived = True

    def teardown(self, req: Request, host: Host, record: Record, facts: HostPortsFacts) -> None:
        """Remove the mappings; ports that another network of the container waits for move there."""
        if facts.backend == IPTABLES:
            from plugins.portmap import iptables

            iptables.remove(host, iptables.chain_of(record.network, record.attachment))
            shared_ports.release(host, record, by_nftables=False)
            route_localnet.remove_with_base(host)
        else:
            shared_ports.pass_on(req, host, record, facts)

    def teardown_unrecorded(self, req: Request, host: Host, _found: Unrecorded) -> None:
        """Remove the reference's mappings, or ours when the record is lost."""
        conf = Conf.of_leftover(req)
        if not conf.ports:
            return
        from plugins.portmap import iptables

        made = [nftables.facts_of(conf, ranges=ranges) for ranges in (True, False)]
        elements = {tuple(one): one for facts in made for one in facts["elements"]}
        facts = HostPortsFacts(**{**made[0], "elements": [*elements.values()]})
        chain = iptables.chain_of(req.network, req.attachment)
        with BestEffort() as steps:
            steps.attempt("nftables", lambda: nftables.remove(host, facts, owner(req), {}))
            steps.attempt("iptables", lambda: iptables.remove(host, chain))
            steps.attempt(
                "the reference's",
                lambda: iptables.remove_of_reference(host, conf, req.network, req.containerid),
            )

    def refuse_living(
        self, req: Request, host: Host, record: Record, facts: HostPortsFacts
    ) -> None:
        """Raise CNIError 4 when mappings are there, for a namespace that may live."""
        from cni_common.node.liveness import State, state_of

        if facts.backend == IPTABLES:
            from plugins.portmap import iptables

            chain = iptables.chain_of(record.network, record.attachment)
            present = iptables.is_there(host.netns, chain)
        else:
            present = nftables.is_there(host.netns, facts, owner(req))
        if present and state_of(host, record.facts) is not State.GONE:
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - record.age()))
            raise CNIError(
                Code.INVALID_ENVIRONMENT,
                f"the ports of container {req.containerid} on '{req.network}', {req.ifname}, are"
                f" mapped since {since}; DEL it first",
            )

    def collect(self, req: Request, host: Host, _plugin: str) -> None:
        """GC: remove the elements of the network that no record names."""
        valid = req.valid_attachments
        if valid is None:
            return
        present = nftables.owners(host.netns)
        gone = False
        for text, keys in present.items():
            names = text.split(" ")
            if names[:2] != [PLUGIN, req.network] or len(names) != 4:
                continue
            attachment = Attachment(names[2], names[3])
            if attachment in valid:
                continue
            held = host.records.hold_place(PLUGIN, req.network, attachment)
            if held is None:
                continue
            try:
                host.log(f"GC removes {len(keys)} elements: no record of {text}")
                nftables.remove_elements(host.netns, keys, text)
                gone = True
            finally:
                held.remove()
        if gone:
            nftables.remove_all_unused(host)

    def restore(self, req: Request, host: Host, _record: Record, facts: HostPortsFacts) -> None:
        """Add the elements again, with chains and conditions, or the chain of iptables."""
        if facts.backend == IPTABLES:
            from plugins.portmap import iptables

            iptables.add(host, Conf.of(req), req.network, req.attachment)
            return
        from plugins.portmap import services

        services.keep_out(host.netns)
        ranges = any(len(one) > 3 for one in facts.elements)  # of which the last key is noted
        holder_of = partial(shared_ports.holder_of, req, host)
        nftables.add(host.netns, Conf.of(req), owner(req), holder_of, ranges=ranges)

    def rejoin(self, host: Host, record: Record, facts: HostPortsFacts) -> None:
        """Note which of the container's networks waits for ports of another."""
        if facts.backend != IPTABLES:  # there the rule that is first serves
            shared_ports.rejoin(host, record)

    def present(self, host: Host, record: Record, facts: HostPortsFacts) -> Iterator[Owned]:
        """Yield the chain, or each element."""
        from plugins.portmap import inspection

        return inspection.present(host, record, facts)

    def usage(self, host: Host, record: Record, facts: HostPortsFacts) -> Iterator[Usage]:
        """Yield each port, and where it leads."""
        from plugins.portmap import inspection

        return inspection.usage(host, record, facts)

    def strays(self, host: Host) -> list[Stray]:
        """Return the elements of each owner, and the chains, also the reference's."""
        from plugins.portmap import inspection

        return inspection.strays(host)

    def claims(self, record: Record) -> Sequence[str]:
        """Return the owner as elements name it, and the chain."""
        if record.get(HostPortsFacts) is None:
            return ()
        from plugins.portmap import iptables

        return owner_of(record), iptables.chain_of(record.network, record.attachment)

    def has_host_port(self, facts: HostPortsFacts, port: int) -> bool:
        """Tell whether `port` is mapped for any protocol and address."""
        return any(span.first <= port <= span.last for span in spans_of(facts))


@dataclass(frozen=True, slots=True)
class RouteLocalnetFacts:
    """Connections from 127.0.0.1 to the ports, which leave by an interface of the host."""

    PART = "route-localnet"
    interface: str = ""
    private: bool = False  # whether it is the attachment's alone


class RouteLocalnet(Part):
    """The sysctl and the guard that let such connections leave."""

    facts = RouteLocalnetFacts
    derived = True

    def teardown(
        self, _req: Request, host: Host, _record: Record, facts: RouteLocalnetFacts
    ) -> None:
        """Forget an interface that goes with the attachment."""
        if facts.private and facts.interface:
            route_localnet.forget(host.netns, facts.interface)

    def restore(
        self, _req: Request, host: Host, _record: Record, facts: RouteLocalnetFacts
    ) -> None:
        """Set the sysctl again, behind its guard, unless the interface is gone."""
        if host.netns.netlink.identify(facts.interface) is None:
            return
        egress = route_localnet.Egress(facts.interface, ours=True, private=facts.private)
        route_localnet.ensure(host, egress)

    def present(self, host: Host, _record: Record, facts: RouteLocalnetFacts) -> Iterator[Owned]:
        """Yield the sysctl, and the guard if that is lost."""
        from plugins.portmap import inspection

        return inspection.localnet(host, facts)


@dataclass(frozen=True, slots=True)
class ConnectionsFacts:
    """Entries of conntrack by which packets of UDP would go on to the container."""

    PART = "connections"
    udp: Sequence[Sequence[Any]] = ()  # IP version, host port, address in hexadecimal, port
    ranges: Sequence[Sequence[Any]] = ()  # IP version, first and last host port, address, port


class Connections(Part):
    """Connections of UDP."""

    facts = ConnectionsFacts
    derived = True

    def teardown(self, _req: Request, host: Host, _record: Record, facts: ConnectionsFacts) -> None:
        """Have the kernel forget these connections."""
        try:
            conntrack.forget_redirected(host.netns, _targets(facts))
        except OSError as error:  # the mappings are gone, and the connections end by themselves
            host.log(f"connections to the ports were not forgotten: {error}")


HOST_PORTS = HostPorts()
_CONNECTIONS, _ROUTE_LOCALNET = Connections(), RouteLocalnet()
LIFECYCLE = Lifecycle(PLUGIN, _ROUTE_LOCALNET, HOST_PORTS, _CONNECTIONS)


def begin(
    req: Request, host: Host, conf: Conf, *, egress: route_localnet.Egress, undo: Undo
) -> Attaching:
    """Write the record of mappings that are about to be made, see Lifecycle.begin."""
    ports = _ports_of(conf, **(nftables.facts_of(conf) if conf.backend == NFTABLES else {}))
    localnet = [RouteLocalnetFacts(egress.name, egress.private)] if egress.ours else []
    udp = conntrack.targets_of(conf)
    connections = [_connections_to(udp)] if udp else []
    return LIFECYCLE.begin(req, host, undo, ports, *localnet, *connections)


def _ports_of(conf: Conf, **more: Any) -> HostPortsFacts:
    at = [(port, str(port.only_at or ""), cidr.version) for port, cidr in conf.targets()]
    single = [[port.protocol, port.host_port, *rest] for port, *rest in at if port.count == 1]
    ranges = [[p.protocol, p.host_port, p.last, *rest] for p, *rest in at if p.count > 1]
    return HostPortsFacts(backend=conf.backend, ports=single, ranges=ranges, **more)


def _connections_to(targets: Sequence[conntrack.Target]) -> ConnectionsFacts:
    def is_single(one: conntrack.Target) -> bool:
        return one.first == one.last

    return ConnectionsFacts(
        udp=[[o.version, o.first, o.address.hex(), o.port] for o in targets if is_single(o)],
        ranges=[
            [o.version, o.first, o.last, o.address.hex(), o.port]
            for o in targets
            if not is_single(o)
        ],
    )


def _targets(facts: ConnectionsFacts) -> list[conntrack.Target]:
    single = ((version, port, port, address, to) for version, port, address, to in facts.udp)
    return [
        conntrack.Target(version, first, last, bytes.fromhex(address), to)
        for version, first, last, address, to in (*single, *facts.ranges)
    ]


def take_back(attaching: Attaching) -> None:
    """Have the mappings taken back when the ADD fails."""
    for part in reversed(LIFECYCLE.parts):
        attaching.take_back(part)


def egress_of_localhost(host: Host, conf: Conf) -> route_localnet.Egress:
    """Return the output interface of connections from 127.0.0.1 to the container."""

    def was_ours(name: str) -> bool:
        records = host.records.of_plugin(PLUGIN)
        noted = (record.get(RouteLocalnetFacts) for record in records)
        return any(facts is not None and facts.interface == name for facts in noted)

    if not conf.opens_localhost:
        return route_localnet.Egress()
    return route_localnet.find(host.netns, conf.addresses[4].ip, was_ours)


def refuse_taken_ports(req: Request, host: Host, conf: Conf) -> None:
    """Raise CNIError when another attachment that is not GONE has one of the ports.

    Only for iptables: under other conditions nftables may give a port to several.
    """
    from cni_common.node.liveness import Liveness, State, describe

    wanted = spans_of(_ports_of(conf))
    liveness = Liveness(host)
    for record in host.records.of_plugin(PLUGIN):
        facts = record.get(HostPortsFacts)
        same = record.attachment.containerid == req.containerid  # the rule that is first serves
        theirs = spans_of(replace(facts, suffix="")) if facts and not same else []
        common = (one.common(other) for one in wanted for other in theirs)
        taken = next((span for span in common if span), None)
        if not taken:
            continue
        state, reason = liveness.assess(record.facts)
        if state is not State.GONE:
            words = describe(owner_of(record), state, reason)
            raise nftables.taken(str(taken), words)
