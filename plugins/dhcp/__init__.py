"""dhcp: gives out addresses of the network's own DHCP servers, which a daemon asks and renews."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.record import dump
from cni_common.spec.errors import CNIError, drifted
from cni_common.spec.result import Result
from plugins.dhcp import client, rpc
from plugins.dhcp.conf import PLUGIN, SCHEMA, Conf
from plugins.dhcp.parts import LIFECYCLE, LeaseFacts, release

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Lifecycle
    from cni_common.node.record import Record
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Have the daemon get a lease for the container's interface, which must exist.

    An attachment that has one gets the same once more. Raises CNIError 7, 11, 50.
    """
    conf = Conf.of(req)
    container = host.open_netns(req.netns)
    undo.reserve()
    record = _open_record(req, host, conf)
    is_first = not (record.get(LeaseFacts) or LeaseFacts()).address
    try:
        if is_first:
            undo.push("record", partial(_forget, req, host, undo))
        given = {
            **client.key_of(req),
            "netns": req.netns,
            "seconds": client.SEARCH_SECONDS,
            "provided": {str(code): value.hex() for code, value in conf.provided.items()},
            "requested": list(conf.requested),
            "priority": conf.priority,
        }
        if is_first:
            undo.push("lease", partial(release, conf.socket, req, host))
        answer = client.call(
            conf.socket,
            rpc.ALLOCATE,
            given,
            seconds=client.ALLOCATE_SECONDS,
            netns=container.fd,
        )
        facts = LeaseFacts(conf.socket, str(answer.get("address")), str(answer.get("server")))
        record.put(facts)
        return Result.parse(answer.get("result", {}))
    finally:
        record.close()


def delete(req: Request, host: Host) -> None:
    """Have the lease released; without a daemon, note that for the next one."""
    LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error unless the daemon keeps a lease of ADD's address; no DHCP server is asked."""
    conf = Conf.of(req)
    previous = req.prev_result
    found = client.call(conf.socket, rpc.CHECK, client.key_of(req), seconds=client.ANSWER_SECONDS)
    address = found.get("address")
    if not address:
        why = found.get("reason") or "the daemon knows of none"
        yield drifted(f"{PLUGIN}: {req.ifname} has no lease: {why}")
    elif previous and address not in [str(ip.address) for ip in previous.ips]:
        yield drifted(f"{PLUGIN}: {req.ifname} has a lease of {address}, which prevResult lacks")


def gc(req: Request, host: Host) -> None:
    """Release the leases of attachments that are gone. Raises an ExceptionGroup."""
    LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError 50 when no daemon answers, or no record can be written; 7 configuration."""
    conf = Conf.of(req)
    host.records.probe()
    client.call(conf.socket, rpc.STATUS, {}, seconds=client.STATUS_SECONDS)


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


def _open_record(req: Request, host: Host, conf: Conf) -> Record:
    """Return the attachment's record; one of an earlier ADD is told where the container is now."""
    header: dict[str, object] = {
        "netns": req.netns,
        "netns_id": host.identity_of(req.netns),
        "stdin": req.stdin.decode("utf-8", "replace"),
        "cni_args": req.environ.get("CNI_ARGS", ""),
        "cni_path": req.environ.get("CNI_PATH", ""),
    }
    facts = LeaseFacts(conf.socket)
    record, is_new = host.records.begin_or_find(
        PLUGIN, req.network, req.attachment, {**header, **dump(facts)}
    )
    if not is_new:
        record.put(record.get(LeaseFacts) or facts, **header)
    return record


def _forget(req: Request, host: Host, undo: Undo) -> None:
    """Remove the record, unless the lease could not be released."""
    if undo.failed:
        return
    record = host.records.find(PLUGIN, req.network, req.attachment)
    if record:
        record.remove()
