"""firewall: packets from and to a container are let through, and bridges are kept apart."""

from cni_common.errors import CNIError, Code
from cni_common.steps import BestEffort
from plugins.firewall import attachment, filters
from plugins.firewall.conf import FIREWALLD, SCHEMA, Conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_common.host import Host
    from cni_common.record import Record
    from cni_common.request import Request
    from cni_common.steps import Undo
    from cni_common.types import Result

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "status"]


def add(req: "Request", host: "Host", undo: "Undo") -> "Result":
    """Let the container's packets through, by its addresses; return prevResult as it is."""
    conf = Conf.of(req)
    previous = req.require_prev_result()
    record = attachment.begin(req, host, conf, previous, undo=undo)
    attachment.admit(req, host, record)
    return previous


def delete(req: "Request", host: "Host") -> None:
    """Take the rules back: by the record of what ADD made, else by the addresses in prevResult."""
    record = host.records.find(attachment.PLUGIN, req.network, req.attachment)
    if record and "backend" in record.facts:
        attachment.dissolve(req, host, record)
        return
    attachment.dissolve_unrecorded(req, host)
    if record:  # an ADD died before it had written a line, or the file is damaged
        record.remove()


def check(req: "Request", host: "Host") -> None:
    """Raise CNIError naming what is no longer as ADD made it."""
    conf = Conf.of(req)
    drift = attachment.missing(req, host, conf, req.require_prev_result())
    if drift:
        raise CNIError(Code.INTERNAL, f"{drift}; delete and add the attachment again")


def gc(req: "Request", host: "Host") -> None:
    """Remove the rules of this network's attachments that are not valid and are gone."""
    from cni_common.collect import collect  # noqa: PLC0415 - GC is rare

    def dissolve(gone: "Request", record: "Record") -> None:
        attachment.dissolve(gone, host, record)

    with BestEffort() as steps:
        collect(attachment.PLUGIN, req, host, steps, dissolve=dissolve)


def status(req: "Request", host: "Host") -> None:
    """Raise CNIError 50 when an ADD could not work now: state, firewall."""
    conf = Conf.of(req)
    host.records.probe()
    backend = attachment.choose_backend(req, host, conf)
    if backend != FIREWALLD:
        filters.probe(host.netns, backend)
        return
    from plugins.firewall import firewalld  # noqa: PLC0415 - where it is used

    if not firewalld.is_running(req.environ):
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            'firewalld is not on the message bus; start it, or set "backend" to another one',
        )
