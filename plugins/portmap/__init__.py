"""portmap: ports of the node that lead to a container."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel.nft_layout import TABLE
from cni_common.spec.errors import CNIError, Code, drifted, listed
from plugins.portmap import (
    conntrack,
    layout,
    nftables,
    parts,
    route_localnet,
    services,
    shared_ports,
)
from plugins.portmap.conf import IPTABLES, SCHEMA, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Lifecycle
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Map the ports that the runtime wishes for; return prevResult as it is."""
    conf = Conf.of(req)
    previous = req.require_prev_result()
    unserved = [port for port in conf.ports if not any(map(port.serves, conf.addresses))]
    if unserved:
        host.log(
            f"portmap: network {req.network}: host port {listed(unserved)} leads nowhere: there is"
            f" no such address of '{req.ifname}' in prevResult; the plugin that makes the interface"
            ' must name it with its "sandbox"'
        )
    if not any(conf.targets()):
        return previous
    _probe(host, conf)
    egress = parts.egress_of_localhost(host, conf)
    attaching = parts.begin(req, host, conf, egress=egress, undo=undo)
    if conf.backend == IPTABLES:  # after our record, so that of two at once one sees the other's
        parts.refuse_taken_ports(req, host, conf)
    parts.take_back(attaching)
    from plugins.portmap import redirects

    redirects.take_over(req, host, conf)
    if conf.backend == IPTABLES:
        from plugins.portmap import iptables

        shared_ports.take(req, host, attaching.record)
        iptables.add(host, conf, req.network, req.attachment)
    else:
        services.keep_out(host.netns)
        shared_ports.claim(req, host, conf, attaching)
    route_localnet.ensure(host, egress)
    _forget_connections(host, conf)
    return previous


def delete(req: Request, host: Host) -> None:
    """Take the mappings back: from the record of what ADD made, else from what can be found."""
    parts.LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each difference from the result of ADD."""
    conf = Conf.of(req)
    req.require_prev_result()
    if not any(conf.targets()):
        return
    if conf.backend == IPTABLES:
        from plugins.portmap import iptables

        found = iptables.check(host.netns, conf, req.network, req.attachment)
    else:
        holder_of = partial(shared_ports.holder_of, req, host)
        found = nftables.check(host.netns, conf, shared_ports.owner(req), holder_of)
    yield from map(drifted, found)
    if conf.opens_localhost:
        yield from route_localnet.check(host.netns, conf.addresses[4].ip)


def gc(req: Request, host: Host) -> None:
    """Remove the mappings of this network that belong to no valid attachment; keep Services out."""
    parts.LIFECYCLE.gc(req, host)
    if TABLE.has_chain(host.netns, layout.PORTS):
        services.keep_out(host.netns)


def status(req: Request, host: Host) -> None:
    """Raise CNIError 50 when an ADD could not work now: state, firewall."""
    conf = Conf.of(req)
    host.records.probe()
    _probe(host, conf)


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return parts.LIFECYCLE


def _probe(host: Host, conf: Conf) -> None:
    """Raise CNIError 50 if the backend cannot be used: it could not be cleaned up either."""
    if conf.backend == IPTABLES:
        from plugins.portmap import iptables

        iptables.probe(host.netns)
        return
    try:
        TABLE.has_chain(host.netns, layout.PORTS)
    except OSError as error:
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"nftables cannot be used: {error.strerror}; load nf_tables or set"
            ' "backend": "iptables"',
        ) from None


def _forget_connections(host: Host, conf: Conf) -> None:
    try:
        conntrack.forget(host.netns, conntrack.targets_of(conf))
    except OSError as error:  # they end by themselves
        host.log(f"earlier connections to the ports were not forgotten: {error}")
