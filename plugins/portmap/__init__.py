"""portmap: ports of the node that lead to a container."""

from functools import partial

from cni_common.errors import CNIError, Code
from cni_common.masquerade import TABLE
from cni_common.steps import BestEffort
from plugins.portmap import attachment, conntrack, layout, localnet, nftables, succession
from plugins.portmap.conf import IPTABLES, PLUGIN, SCHEMA, Conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_common.host import Host
    from cni_common.request import Request
    from cni_common.steps import Undo
    from cni_common.types import Result

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "status"]


def add(req: "Request", host: "Host", undo: "Undo") -> "Result":
    """Map the ports that the runtime wishes for; return prevResult as it is."""
    conf = Conf.of(req)
    previous = req.require_prev_result()
    if not any(conf.targets()):
        return previous
    way = attachment.way_of_localhost(host, conf)
    record = attachment.begin(req, host, conf, way=way, undo=undo)
    if conf.backend == IPTABLES:  # after our record, so that of two at once one sees the other's
        attachment.refuse_taken_ports(req, host, conf)
    undo.push("port mappings", lambda: attachment.unmap(req, host, record.facts))
    if conf.backend == IPTABLES:
        from plugins.portmap import iptables  # noqa: PLC0415 - subprocess and more, for this alone

        iptables.add(host, conf, req.network, req.attachment)
    else:
        succession.claim(req, host, conf)
    localnet.ensure(host, way)
    if any(port.protocol == "udp" for port in conf.ports):
        _forget_connections(host, conf)
    return previous


def delete(req: "Request", host: "Host") -> None:
    """Take the mappings back: from the record of what ADD made, else from what can be found."""
    record = host.records.find(PLUGIN, req.network, req.attachment)
    if record and "backend" in record.facts:
        attachment.dissolve(req, host, record)
        return
    attachment.dissolve_unrecorded(req, host)
    if record:  # an ADD died before it had written a line, or the file is damaged
        record.remove()


def check(req: "Request", host: "Host") -> None:
    """Raise CNIError naming the port that is no longer mapped as ADD did it."""
    conf = Conf.of(req)
    req.require_prev_result()
    if not any(conf.targets()):
        return
    if conf.backend == IPTABLES:
        from plugins.portmap import iptables  # noqa: PLC0415 - as above

        drift = iptables.check(host.netns, conf, req.network, req.attachment)
    else:
        judge = partial(succession.judge, req, host)
        drift = nftables.check(host.netns, conf, succession.owner(req), judge)
    if not drift and conf.opens_localhost:
        drift = localnet.check(host.netns, conf.addresses[4].ip)
    if drift:
        raise CNIError(Code.INTERNAL, f"{drift}; delete and add the attachment again")


def gc(req: "Request", host: "Host") -> None:
    """Remove the mappings of this network that belong to no valid attachment."""
    with BestEffort() as steps:
        attachment.collect(req, host, steps)


def status(req: "Request", host: "Host") -> None:
    """Raise CNIError 50 when an ADD could not work now: state, firewall."""
    conf = Conf.of(req)
    host.records.probe()
    if conf.backend == IPTABLES:
        from plugins.portmap import iptables  # noqa: PLC0415 - as above

        iptables.probe()
        return
    try:
        TABLE.has_chain(host.netns, layout.PORTS)
    except OSError as error:
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"nftables cannot be used: {error.strerror}; load nf_tables or set"
            ' "backend": "iptables"',
        ) from None


def _forget_connections(host: "Host", conf: Conf) -> None:
    try:
        conntrack.forget(host.netns, conf)
    except OSError as error:  # they end by themselves
        host.log(f"earlier connections to the ports were not forgotten: {error}")
