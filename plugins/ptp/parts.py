"""The parts of a ptp attachment: the pair, the configuration of both ends, and shared parts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_common.node import interface
from cni_common.node.lifecycle import Lifecycle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.node.owned import Owned
    from cni_common.node.record import Record
    from cni_common.spec.request import Request


class Configuration(interface.Configuration):
    """Gateways and routes on the host's end, too: they go with the pair.

    Settings in the container stay lost: its routes there are not those of a subnet.
    """

    inside = False

    def restore(
        self, _req: Request, host: Host, record: Record, facts: interface.ConfigurationFacts
    ) -> None:
        """Put back gateways and routes of the host's end, and forwarding."""
        from cni_common.node.veth import enable_forwarding
        from plugins.ptp import routes

        pair = record.get(interface.VethFacts)
        link = host.netns.netlink.link(pair.host_end) if pair else None
        if pair is None or link is None or link.mac != pair.host_end_mac:
            return
        ips = interface.ips_in(facts)
        enable_forwarding(host.netns, {ip.address.version for ip in ips}, host.log)
        host.netns.netlink.set_up(link.index)
        routes.configure_host(host.netns, link, ips, lambda other: f"interface '{other.name}'")

    def present(
        self, host: Host, record: Record, facts: interface.ConfigurationFacts
    ) -> Iterator[Owned]:
        """Yield gateways and routes beside those of the container."""
        from cni_common.node.owned import Owned
        from plugins.ptp import routes

        yield from (replace(one, final=True) for one in super().present(host, record, facts))
        pair = record.get(interface.VethFacts)
        link = host.netns.netlink.link(pair.host_end) if pair else None
        name = pair.host_end if pair else ""
        ips = interface.ips_in(facts)
        for gateway, there in routes.found_gateways(host.netns, link, ips):
            yield Owned("gateway", f"{gateway} of '{name}'", there)
        for address, there in routes.found_routes(host.netns, link, ips):
            yield Owned("route", f"to {address} over '{name}' of the host", there)
        yield from interface.forwarding(host, {ip.address.version for ip in ips})


# A veth that no record knows is one of the reference's, or of a bridge.
VETH = interface.Veth(lambda _req, _host, end: not end.master)
LIFECYCLE = Lifecycle("ptp", VETH, Configuration(), interface.MASQUERADE, interface.IPAM)
