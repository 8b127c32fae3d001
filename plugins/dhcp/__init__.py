"""dhcp: gives out addresses of the network's own DHCP servers, which a daemon asks and renews."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.record import dump
from cni_common.spec.errors import CNIError, drifted
from cni_common.spec.result import Result
from plugins.dhcp import client, rpc
from plugins.dhcp.conf import BOTH, IPV4, IPV6, PLUGIN, SCHEMA, Conf
from plugins.dhcp.parts import LIFECYCLE, LeaseFacts, release

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Lifecycle
    from cni_common.node.record import Record
    from cni_common.spec.request import Request
    from cni_common.spec.undo import Undo
    from cni_common.spec.wire import Json

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Have the daemon get a lease for the container's interface, which must exist.

    An attachment that has one gets the same once more. Raises CNIError 7, 11, 50.
    """
    conf = Conf.of(req)
    container = host.open_netns(req.netns)
    undo.reserve()
    record = _open_record(req, host, conf)
    is_first = not (record.get(LeaseFacts) or LeaseFacts()).leases
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
            "family": conf.family,
        }
        if is_first:
            undo.push("lease", partial(release, conf.socket, req, host))
        answer = client.call(
            conf.socket,
            rpc.ALLOCATE if conf.family == IPV4 else rpc.ALLOCATE_FAMILY,
            given,
            seconds=client.ALLOCATE_SECONDS,
            netns=container.fd,
        )
        record.put(_facts(conf, answer))
        return Result.parse(answer.get("result", {}))
    finally:
        record.close()


def delete(req: Request, host: Host) -> None:
    """Have the lease released; without a daemon, note that for the next one."""
    LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each address of ADD whose lease the daemon lacks; no server is asked."""
    conf = Conf.of(req)
    found = client.call(conf.socket, rpc.CHECK, client.key_of(req), seconds=client.ANSWER_SECONDS)
    if conf.family == IPV4:
        yield from _check_lease(req, "lease", found)
        return
    for family in (IPV4, IPV6) if conf.family == BOTH else (IPV6,):
        version = "IPv4" if family == IPV4 else "IPv6"
        yield from _check_lease(req, f"{version} lease", found.get("leases", {}).get(family, {}))


def _check_lease(req: Request, what: str, told: Json) -> Iterator[CNIError]:
    """Yield an error unless the daemon tells of a lease whose address prevResult has."""
    previous, address = req.prev_result, told.get("address")
    if not address:
        why = told.get("reason") or "the daemon knows of none"
        yield drifted(f"{PLUGIN}: {req.ifname} has no {what}: {why}")
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


def _facts(conf: Conf, answer: Json) -> LeaseFacts:
    """Return what the record has of the daemon's answer."""
    usual = {key: answer.get(key, "") for key in ("address", "server")}
    leases = answer.get("leases") or {IPV4: usual}  # an older daemon has but one
    first, second = (leases.get(family, {}) for family in (IPV4, IPV6))
    found = [str(one.get(key, "")) for one in (first, second) for key in ("address", "server")]
    return LeaseFacts(conf.socket, *found)


def _forget(req: Request, host: Host, undo: Undo) -> None:
    """Remove the record, unless the lease could not be released."""
    if undo.failed:
        return
    record = host.records.find(PLUGIN, req.network, req.attachment)
    if record:
        record.remove()
