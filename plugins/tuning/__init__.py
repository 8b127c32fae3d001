"""tuning: sysctls of the container's network namespace, and attributes of its interface."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.undo import BestEffort
from plugins.tuning import device, sysctl
from plugins.tuning.conf import SCHEMA, Conf, Device, backup_path

if TYPE_CHECKING:
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "status"]

PLUGIN = "tuning"
IPV6_MTU_MIN = 1280  # bytes, RFC 8200 section 5


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Set what is asked for, and return prevResult with the interface as it is now."""
    conf = Conf.of(req)
    result = req.require_prev_result()
    if not conf.sysctls and not conf.device:
        return result
    sysctl.check_allowed(conf.keys)
    _refuse_to_end_ipv6(req, conf, result)
    container = host.open_netns(req.netns)
    record = _begin(req, host, container, undo)
    if conf.sysctls:
        before = sysctl.read(container, conf.sysctls)
        record.note(sysctls=before)
        undo.push("sysctls", lambda: sysctl.restore(container, before, {}))
        sysctl.write(container, conf.sysctls, before)
        record.note(sysctls_after=sysctl.read(container, conf.sysctls))
    if conf.device:
        _change_device(req, container, conf.device, record=record, undo=undo)
        for entry in result.interfaces:
            if entry.name == req.ifname and entry.sandbox:
                entry.mac = conf.device.mac or entry.mac
                entry.mtu = (conf.device.mtu or entry.mtu) if entry.mtu else 0
    return result


def delete(req: Request, host: Host) -> None:
    """Give back what ADD changed, as far as it is still there."""
    record = host.records.find(PLUGIN, req.network, req.attachment)
    if record:
        dissolve(req, host, record)
        return
    path = backup_path(req)
    before = device.load(path)  # of the reference
    container = host.find_netns(req.netns) if before else None
    if container:
        _restore_device(req, container, before)
    device.forget(path)


def dissolve(req: Request, host: Host, record: Record) -> None:
    """Give back what `record` names, then remove it; it stays when a step fails."""
    facts = record.facts
    container = host.find_netns(req.netns)
    with BestEffort() as steps:
        if container and container.identity == facts.get("netns_id"):
            before = device.of_json(facts.get("device", {}))
            steps.attempt("interface", lambda: _restore_device(req, container, before))
            steps.attempt(
                "sysctls",
                lambda: sysctl.restore(
                    container, facts.get("sysctls", {}), facts.get("sysctls_after", {})
                ),
            )
        steps.attempt("backup", lambda: device.forget(facts.get("backup") or backup_path(req)))
    record.remove()


def check(req: Request, host: Host) -> None:
    """Raise CNIError naming what is no longer as ADD made it."""
    conf = Conf.of(req)
    req.require_prev_result()
    container = host.open_netns(req.netns)
    if conf.sysctls:
        facts = next(
            (
                facts
                for facts in host.records.survey(PLUGIN)
                if facts.get("network") == req.network
                and (facts.get("containerid"), facts.get("ifname")) == (req.containerid, req.ifname)
            ),
            {},
        )
        # As the kernel has put it; it knows 0x10 as 16.
        due = {**conf.sysctls, **facts.get("sysctls_after", {})}
        for path, value in sysctl.read(container, conf.sysctls).items():
            if value is not None and not sysctl.is_same(value, due[path]):
                raise _drift(f"sysctl {path} is {value!r}, it should be {due[path]!r}")
    if conf.device:
        difference = device.difference(device.required(container, req.ifname), conf.device)
        if difference:
            raise _drift(difference)


def gc(req: Request, host: Host) -> None:
    """Forget attachments that are gone: what was changed for them went with their namespace."""
    from cni_common.node.liveness import collect

    with BestEffort() as steps:
        collect(PLUGIN, req, host, steps, dissolve=lambda gone, one: dissolve(gone, host, one))


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work now: 7 configuration, 5 allow-list, 50 state."""
    conf = Conf.of(replace(req, environ={}))  # CNI_ARGS belong to an attachment
    sysctl.check_allowed(conf.keys)
    host.records.probe()


def _refuse_to_end_ipv6(req: Request, conf: Conf, result: Result) -> None:
    """Raise CNIError 7 when the interface would lose its IPv6 addresses by its MTU."""
    if not 0 < (conf.device.mtu or 0) < IPV6_MTU_MIN:
        return
    for ip in result.ips:
        where = None if ip.interface is None else result.interfaces[ip.interface].name
        if ip.address.version == 6 and where in (None, req.ifname):
            raise CNIError(
                Code.INVALID_CONFIG,
                f'"mtu" is {conf.device.mtu}, {ip.address} needs {IPV6_MTU_MIN} bytes (RFC 8200)',
            )


def _begin(req: Request, host: Host, container: NetNS, undo: Undo) -> Record:
    """Write the record; what an earlier ADD of the attachment has changed is given back first."""
    facts = {
        "netns": req.netns,
        "netns_id": container.identity,
        "backup": backup_path(req),
        "stdin": req.stdin.decode("utf-8", "replace"),
        "cni_path": req.environ.get("CNI_PATH", ""),
    }
    record = host.records.begin_anew(
        PLUGIN, req.network, req.attachment, facts, clear=lambda old: dissolve(req, host, old)
    )
    # The last to go, and only when nothing is left that it could be needed for.
    undo.push("record", lambda: None if undo.failed else record.remove())
    return record


def _change_device(
    req: Request, container: NetNS, wanted: Device, *, record: Record, undo: Undo
) -> None:
    link = device.required(container, req.ifname)
    before = device.former(link, wanted)
    path = record.facts["backup"]
    record.note(device=device.as_json(before))
    undo.push("backup", lambda: device.forget(path))
    undo.push("interface", lambda: _restore_device(req, container, before))
    device.save(path, before)
    device.apply(container, link.index, wanted)


def _restore_device(req: Request, container: NetNS, before: Device) -> None:
    link = container.netlink.link(req.ifname)
    if link is None:
        return
    with BestEffort() as steps:
        device.apply(container, link.index, before, steps)


def _drift(what: str) -> CNIError:
    return CNIError(Code.INTERNAL, f"{what}; delete and add the attachment again")
