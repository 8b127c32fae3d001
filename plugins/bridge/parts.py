"""The parts of a bridge attachment: interface, addresses, masquerading and filters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from ipaddress import ip_interface
from typing import TYPE_CHECKING

from cni_common.node.interface import (
    CONFIGURATION,
    IPAM,
    MASQUERADE,
    Veth,
    VethFacts,
    forwarding,
)
from cni_common.node.lifecycle import Lifecycle, Part
from cni_common.node.masquerade import owner_of
from plugins.bridge import macfilter
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
    from plugins.bridge.conf import Conf


@dataclass(frozen=True, slots=True)
class PortFacts:
    """The bridge of which the host's end is a port."""

    PART = "bridge-port"
    bridge: str = ""


class Port(Part):
    """The port; it goes with the pair, and the bridge is shared."""

    facts = PortFacts

    def present(self, host: Host, record: Record, facts: PortFacts) -> Iterator[Owned]:
        """Yield the bridge, and the port if it is in none or in another one."""
        from cni_common.node.owned import Owned

        bridge = host.netns.netlink.link(facts.bridge)
        there = bridge is not None and bridge.kind == "bridge" and bridge.up
        yield Owned("bridge", f"'{facts.bridge}', up", there, shared=True)
        pair = record.get(VethFacts)
        link = host.netns.netlink.link(pair.host_end) if pair else None
        if bridge and link and link.master != bridge.index:
            yield Owned(self.name, f"'{link.name}' of '{facts.bridge}'", present=False)


@dataclass(frozen=True, slots=True)
class MacFilterFacts:
    """A filter that lets frames in by one port from one MAC only."""

    PART = "mac-filter"
    port: str = ""
    mac: str = ""


class MacFilter(Part):
    """The filter of macspoofchk."""

    facts = MacFilterFacts

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

        for port in macfilter.orphans(host.netns):
            yield Stray(
                self.name,
                f"port '{port}' of {macfilter.TABLE}",
                (),
                owner=port,
                addresses=frozenset(),
                reason="the port is gone, and no record names it",
                remove=partial(_remove, host, port),
                idle=True,
            )
        for port, owner in macfilter.orphans_of_reference(host.netns):
            yield Stray(
                self.name,
                f"port '{port}' of table bridge nat, for '{owner}' (reference plugin)",
                (),
                owner="",
                addresses=frozenset(),
                reason="the port is gone",
                remove=partial(_remove_of_reference, host, port, owner),
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
    shared = True

    def present(self, host: Host, _record: Record, facts: GatewayFacts) -> Iterator[Owned]:
        """Yield the addresses as one object, present if the interface has all of them."""
        from cni_common.node.owned import Owned

        netlink = host.netns.netlink
        link = netlink.link(facts.interface)
        found = {str(cidr) for cidr, _ in netlink.addresses(link.index)} if link else set()
        what = f"'{facts.interface}' {' '.join(facts.addresses)}"
        yield Owned(self.name, what, found.issuperset(facts.addresses), shared=True)
        versions = {ip_interface(text).version for text in facts.addresses}
        yield from forwarding(host, versions)


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
