"""firewall: packets from and to a container are let through, and bridges are kept apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code, drifted
from plugins.firewall import filter_tables, parts
from plugins.firewall.conf import FIREWALLD, SCHEMA, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Lifecycle
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Let the container's packets through, by its addresses; return prevResult as it is."""
    conf = Conf.of(req)
    previous = req.require_prev_result()
    attaching = parts.begin(req, host, conf, previous, undo=undo)
    parts.admit(req, host, attaching)
    return previous


def delete(req: Request, host: Host) -> None:
    """Take the rules back: by the record of what ADD made, else by the addresses in prevResult."""
    parts.LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each difference from the result of ADD."""
    conf = Conf.of(req)
    yield from map(drifted, parts.missing(req, host, conf, req.require_prev_result()))


def gc(req: Request, host: Host) -> None:
    """Remove the rules of this network's attachments that are not valid and are gone."""
    parts.LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError 50 when an ADD could not work now: state, firewall."""
    conf = Conf.of(req)
    host.records.probe()
    backend = parts.choose_backend(req, host, conf)
    if backend != FIREWALLD:
        filter_tables.probe(host.netns, backend)
        return
    from plugins.firewall import firewalld

    if not firewalld.is_running(req.environ):
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            'firewalld is not on the message bus; start it, or set "backend" to another one',
        )


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return parts.LIFECYCLE
