"""tuning: sysctls of the container's network namespace, and attributes of its interface."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code, drifted
from plugins.tuning import device, parts, sysctl
from plugins.tuning.conf import SCHEMA, Conf, Device, backup_path
from plugins.tuning.parts import LIFECYCLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching, Lifecycle
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]

IPV6_MTU_MIN = 1280  # bytes, RFC 8200 section 5
_SET_BACK = "set it back in the container's namespace"


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Set what is asked for, and return prevResult with the interface as it is now."""
    conf = Conf.of(req)
    result = req.require_prev_result()
    if not conf.sysctls and not conf.device:
        return result
    sysctl.check_allowed(conf.keys)
    _refuse_to_end_ipv6(req, conf, result)
    container = host.open_netns(req.netns)
    backup = parts.BackupFacts(backup_path(req))
    attaching = LIFECYCLE.begin(req, host, undo, backup)
    if conf.sysctls:
        before = sysctl.read(container, conf.sysctls)
        attaching.note(parts.SysctlsFacts(before))
        attaching.take_back(parts.SYSCTLS)
        sysctl.write(container, conf.sysctls, before)
        attaching.note(parts.SysctlsFacts(before, sysctl.read(container, conf.sysctls)))
    if conf.device:
        link = _change_device(req, container, conf.device, attaching=attaching, path=backup.path)
        _compare_ends(req, host, container, link, mtu=conf.device.mtu)
        for entry in result.interfaces:
            if entry.name == req.ifname and entry.sandbox:
                entry.mac = conf.device.mac or entry.mac
                entry.mtu = (conf.device.mtu or entry.mtu) if entry.mtu else 0
    return result


def delete(req: Request, host: Host) -> None:
    """Give back what ADD changed, as far as it is still there."""
    LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each difference from the result of ADD."""
    conf = Conf.of(req)
    req.require_prev_result()
    container = host.open_netns(req.netns)
    if conf.sysctls:
        # As the kernel has put it; it knows 0x10 as 16.
        due = {**conf.sysctls, **_sysctls_after(req, host)}
        for path, value in sysctl.read(container, conf.sysctls).items():
            if value is not None and not sysctl.is_same(value, due[path]):
                what = f"sysctl {path} is {value!r}, it should be {due[path]!r}"
                yield drifted(what, _SET_BACK)
    if conf.device:
        link = device.required(container, req.ifname)
        for what in device.differences(link, conf.device):
            yield drifted(what, _SET_BACK)


def gc(req: Request, host: Host) -> None:
    """Forget attachments that are gone: their changes went with their namespaces."""
    LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work now: 7 configuration, 5 allow-list, 50 state."""
    conf = Conf.of(replace(req, environ={}))  # CNI_ARGS belong to an attachment
    sysctl.check_allowed(conf.keys)
    host.records.probe()


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


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


def _sysctls_after(req: Request, host: Host) -> Mapping[str, str | None]:
    """Return the sysctls as ADD has left them, by its record."""
    path = host.records.path_of(LIFECYCLE.plugin, req.network, req.attachment)
    record = host.records.peek(path)
    facts = record.get(parts.SysctlsFacts) if record else None
    return facts.after if facts else {}


def _change_device(
    req: Request, container: NetNS, wanted: Device, *, attaching: Attaching, path: str
) -> Link:
    """Change the interface, and return it as it was before."""
    link = device.required(container, req.ifname)
    before = device.former(link, wanted)
    attaching.note(parts.InterfaceFacts(device.as_json(before), device.as_json(wanted)))
    attaching.take_back(parts.BACKUP)
    attaching.take_back(parts.INTERFACE)
    device.save(path, before)
    device.apply(container, link, wanted)
    return link


def _compare_ends(
    req: Request, host: Host, container: NetNS, link: Link, *, mtu: int | None
) -> None:
    """Log when only one end of a veth pair has the MTU: the other end's larger packets are lost."""
    if not mtu or link.kind != "veth":
        return
    from cni_common.node import veth

    other = veth.host_end(host.netns, container, link)
    if other and other.mtu != mtu:
        host.log(
            f"tuning: network {req.network}: '{req.ifname}' has MTU {mtu} now, and the host's end"
            f" '{other.name}' has {other.mtu}: packets longer than the smaller one are lost; set"
            ' "mtu" of the plugin that makes the pair instead'
        )
