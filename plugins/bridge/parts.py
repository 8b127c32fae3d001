"""The parts of a bridge attachment: interface, addresses, masquerading and filters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_interface
from typing import TYPE_CHECKING

from cni_common.node.interface import (
    CONFIGURATION,
    IPAM,
    MASQUERADE,
    ConfigurationFacts,
    Veth,
    VethFacts,
    forwarding,
    ips_in,
)
from cni_common.node.lifecycle import Lifecycle, Part, recorded_add
from cni_common.node.masquerade import owner_of
from cni_common.spec.result import Result
from cni_common.spec.wire import fold
from plugins.bridge import gateway, macfilter, port
from plugins.bridge.conf import SCHEMA, Conf
from plugins.bridge.gateway import Claims

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_common.kernel.link import Link
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Unrecorded
    from cni_common.node.owned import Owned, Stray
    from cni_common.node.record import Record
    from cni_common.spec.names import Cidr
    from cni_common.spec.request import Request
    from cni_common.spec.result import IPConfig


@dataclass(frozen=True, slots=True)
class PortFacts:
    """The bridge of which the host's end is a port."""

    PART = "bridge-port"
    bridge: str = ""


class Port(Part):
    """The port; it goes with the pair, and the bridge is shared."""

    facts = PortFacts
    derived = True

    def restore(self, req: Request, host: Host, record: Record, _facts: PortFacts) -> None:
        """Make the bridge if it is gone, and the host's end its port, with flags and VLANs."""
        conf = Conf.of(req)
        bridge, _ = port.ensure_bridge(host.netns, conf)
        link = _port_of(host, record)
        if link is None:
            return
        if link.master != bridge.index:
            host.netns.netlink.set_master(link.index, bridge.index)
        port.configure(host.netns, link, conf, anew=True)

    def present(self, host: Host, record: Record, facts: PortFacts) -> Iterator[Owned]:
        """Yield the bridge, and the port if it is in none, in another one or altered."""
        from cni_common.node.owned import Owned

        bridge = host.netns.netlink.link(facts.bridge)
        there = bridge is not None and bridge.kind == "bridge" and bridge.up
        yield Owned("bridge", f"'{facts.bridge}', up", there, shared=True)
        link = _port_of(host, record)
        if not link or not bridge:
            return
        if link.master != bridge.index:
            yield Owned(self.name, f"'{link.name}' of '{facts.bridge}'", present=False)
            return
        for what in port.altered(host.netns, _conf_of(record), link):
            yield Owned(self.name, what, present=False)


@dataclass(frozen=True, slots=True)
class MacFilterFacts:
    """A filter that lets frames in by one port from one MAC only."""

    PART = "mac-filter"
    port: str = ""
    mac: str = ""


class MacFilter(Part):
    """The filter of macspoofchk."""

    facts = MacFilterFacts
    derived = True

    def teardown(self, _req: Request, host: Host, _record: Record, facts: MacFilterFacts) -> None:
        """Remove the elements of the port."""
        macfilter.remove(host.netns, facts.port, facts.mac)

    def teardown_unrecorded(self, req: Request, host: Host, _found: Unrecorded) -> None:
        """Remove the reference's filter."""
        macfilter.remove_of_reference(host.netns, req.attachment)

    def collect(self, req: Request, host: Host, _plugin: str) -> None:
        """GC: remove the filters of ports that are gone."""
        if req.valid_attachments is not None:
            for what in macfilter.gc(host.netns):
                host.log(f"GC removes {what}")

    def restore(self, _req: Request, host: Host, _record: Record, facts: MacFilterFacts) -> None:
        """Add what is missing."""
        macfilter.put_back(host.netns, facts.port, facts.mac)

    def present(self, host: Host, _record: Record, facts: MacFilterFacts) -> Iterator[Owned]:
        """Yield the filter."""
        from cni_common.node.owned import Owned, lost_rules

        what = f"port '{facts.port}', MAC {facts.mac} in {macfilter.TABLE}"
        there = macfilter.holds(host.netns, facts.port, facts.mac)
        yield Owned(self.name, what, any(there))
        if any(there) and not all(there):
            what = f"one of two elements for port '{facts.port}' in {macfilter.TABLE}"
            yield Owned(self.name, what, present=False)
        yield from lost_rules(self.name, macfilter.LAYOUT, host.netns)

    def strays(self, host: Host) -> Iterator[Stray]:
        """Yield the filters of ports that are gone, also the reference's."""
        from cni_common.node.owned import Stray

        for name in macfilter.orphans(host.netns):
            yield Stray(
                self.name,
                f"port '{name}' of {macfilter.TABLE}",
                (),
                owner=name,
                addresses=frozenset(),
                reason="the port is gone, and no record names it",
                remove=partial(_remove, host, name),
                idle=True,
            )
        for name, owner in macfilter.orphans_of_reference(host.netns):
            yield Stray(
                self.name,
                f"port '{name}' of table bridge nat, for '{owner}' (reference plugin)",
                (),
                owner="",
                addresses=frozenset(),
                reason="the port is gone",
                remove=partial(_remove_of_reference, host, name, owner),
                idle=True,
            )

    def claims(self, record: Record) -> Iterator[str]:
        """Yield the port."""
        facts = record.get(VethFacts)
        if facts:
            yield facts.host_end


@dataclass(frozen=True, slots=True)
class GatewayFacts:
    """The host's addresses on the bridge, which are shared and stay."""

    PART = "gateway"
    interface: str = ""
    addresses: Sequence[str] = ()  # with prefix length


class Gateway(Part):
    """The gateway: noted so that other networks do not take it away."""

    facts = GatewayFacts
    derived = True
    shared = True

    def restore(self, req: Request, host: Host, record: Record, _facts: GatewayFacts) -> None:
        """Add the addresses again, with routes to their subnets, and forward; displace no other."""
        conf = replace(Conf.of(req), force_address=False)
        bridge, seen = port.ensure_bridge(host.netns, conf)
        result = Result(ips=_ips_of(record))
        link = ensure_gateway(req, host, conf, bridge, result, seen=seen)
        gateway.put_back_routes(host.netns, link, result)

    def present(self, host: Host, record: Record, facts: GatewayFacts) -> Iterator[Owned]:
        """Yield the addresses as one object, present if the interface has all of them.

        Routes to their subnets are yielded where they are missing.
        """
        from cni_common.node.owned import Owned

        netlink = host.netns.netlink
        link = netlink.link(facts.interface)
        found = {str(cidr) for cidr, _ in netlink.addresses(link.index)} if link else set()
        what = f"'{facts.interface}' {' '.join(facts.addresses)}"
        yield Owned(self.name, what, found.issuperset(facts.addresses), shared=True)
        if link and found.issuperset(facts.addresses):
            for subnet in gateway.lost_routes(host.netns, link, Result(ips=_ips_of(record))):
                what = f"to {subnet} over '{link.name}' of the host"
                yield Owned("route", what, present=False, shared=True)
        versions = {ip_interface(text).version for text in facts.addresses}
        yield from forwarding(host, versions)


def ensure_gateway(  # noqa: PLR0917 - what an ADD knows by then
    req: Request, host: Host, conf: Conf, bridge: Link, result: Result, *, seen: Sequence[Cidr]
) -> Link:
    """Give the bridge the gateways' addresses; return the interface that has them.

    `seen` are addresses of the bridge that this call has seen. Raises as `gateway.ensure` does.
    """
    return gateway.ensure(
        host.netns,
        conf,
        bridge,
        result,
        seen=seen,
        claims=lambda link, cidr: claims(req, host, conf, link, cidr),
        log=host.log,
    )


def claims(req: Request, host: Host, conf: Conf, link: Link, address: Cidr) -> Claims:  # noqa: PLR0917
    """Return the others that need an address on `link`, the gateway's interface."""
    return Claims(_user_of_gateway(req, host, conf, address), _foreign_ports(host, link))


def _user_of_gateway(req: Request, host: Host, conf: Conf, gateway: Cidr) -> str:
    """Describe another network that has containers behind `gateway` that are not GONE, or ""."""
    from cni_common.node.liveness import Liveness, State, describe

    liveness = Liveness(host)
    for record in host.records.of_plugin(LIFECYCLE.plugin):
        facts = record.get(GatewayFacts)
        if (
            facts is not None
            and record.network != req.network
            and facts.interface == conf.gateway_interface
            and str(gateway) in facts.addresses
        ):
            state, reason = liveness.assess(record.facts)
            if state is not State.GONE:
                owner = describe(str(owner_of(record)), state, reason)
                return f"network '{record.network}', for {owner}"
    return ""


def _foreign_ports(host: Host, bridge: Link) -> list[str]:
    """Return the ports of a bridge that no record of an attachment names: an uplink, perhaps."""
    records = host.records.of_plugin(LIFECYCLE.plugin)
    known = {facts.host_end for record in records if (facts := record.get(VethFacts))}
    ports = (link.name for link in host.netns.netlink.links() if link.master == bridge.index)
    return sorted(f"'{name}'" for name in ports if name not in known)


def _port_of(host: Host, record: Record) -> Link | None:
    """Return the host's end of a recorded attachment, None if it is gone."""
    pair = record.get(VethFacts)
    link = host.netns.netlink.link(pair.host_end) if pair else None
    return link if pair and link and link.mac == pair.host_end_mac else None


def _conf_of(record: Record) -> Conf:
    """Return the configuration of a recorded ADD. Raises CNIError."""
    req = recorded_add(record, "")
    return Conf.of(replace(req, config=fold(req.config, SCHEMA)))


def _ips_of(record: Record) -> list[IPConfig]:
    return ips_in(record.get(ConfigurationFacts) or ConfigurationFacts())


def _is_in_bridge(req: Request, host: Host, end: Link) -> bool:
    bridge = host.netns.netlink.link(req.config.get("bridge", "cni0"))
    return end.master == (bridge.index if bridge else 0)


def _remove(host: Host, port: str) -> None:
    if port in macfilter.orphans(host.netns):
        macfilter.remove_port(host.netns, port)


def _remove_of_reference(host: Host, port: str, owner: str) -> None:
    if (port, owner) in macfilter.orphans_of_reference(host.netns):
        macfilter.remove_named_of_reference(host.netns, owner)


MAC_FILTER = MacFilter()
VETH = Veth(_is_in_bridge)
LIFECYCLE = Lifecycle(
    "bridge", VETH, Port(), CONFIGURATION, MASQUERADE, MAC_FILTER, Gateway(), IPAM
)
