"""The life of one attachment: its record, its address, and how it is taken apart.

For plugins that give the container an interface by a veth pair.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING

from cni_common.kernel.link_deletion import delete_link
from cni_common.node import liveness, masquerade, veth
from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.ipam_config import ipam_type
from cni_common.spec.names import CURRENT_VERSION
from cni_common.spec.request import Attachment, Command, Request
from cni_common.spec.undo import BestEffort

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_common.kernel.link import Link
    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.names import Address, Cidr
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo
    from cni_common.spec.wire import Json

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # for delegates


def _nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What one plugin's attachments have of their own; the last three are steps of DEL and GC."""

    plugin: str
    # Whether a veth that no record knows, by its end on the host, belongs to the network.
    is_in_network: Callable[[Request, Host, Link], bool]
    dissolve: Callable[[Host, Json, BestEffort], object] = _nothing
    dissolve_unrecorded: Callable[[Request, Host, BestEffort], object] = _nothing
    collect: Callable[[Host, BestEffort], object] = _nothing

    def owner(self, req: Request) -> masquerade.Owner:
        """Return the attachment as the owner of its masquerading."""
        return masquerade.Owner(self.plugin, req.network, req.attachment)


def begin(kind: Kind, req: Request, host: Host, undo: Undo) -> Record:
    """Write the record of an attachment that is about to be made.

    What an interrupted ADD of the same attachment has left is taken apart first; one that lives,
    in another namespace, is refused by CNIError 4.
    """
    facts = {
        "netns": req.netns,
        "netns_id": host.open_netns(req.netns).identity,
        "ipam": ipam_type(req.config),
        "stdin": req.stdin.decode("utf-8", "replace"),
        "cni_args": req.environ.get("CNI_ARGS", ""),
        "cni_path": req.environ.get("CNI_PATH", ""),
        "masquerade": "",
    }

    def clear(old: Record) -> None:
        _refuse_living(req, host, old)
        host.log(f"taking apart what an interrupted ADD of {req.containerid} has left")
        dissolve(kind, req, host, old)

    record = host.records.begin_anew(kind.plugin, req.network, req.attachment, facts, clear=clear)
    # The last to go, and only when nothing is left that it could be needed for.
    undo.push("record", lambda: None if undo.failed else record.remove())
    return record


def allocate(
    req: Request,
    host: Host,
    type: str,
    undo: Undo,
    *,
    mtu: int,
) -> Result:
    """Return what the IPAM plugin gives, and have it taken back should the ADD fail.

    That is one address at least. Raises CNIError, also when `mtu` (0: the kernel's) is too small
    for the addresses.
    """
    given = host.delegate(type, req, Command.ADD, undo=undo)
    if given is None:
        raise CNIError(Code.INTERNAL, f"IPAM plugin '{type}' returned no result")
    given.refuse_contradictions(f"IPAM plugin '{type}'")
    if not given.ips:
        raise CNIError(
            Code.INTERNAL, f"IPAM plugin returned missing IP config: '{type}' gave no address"
        )
    if 0 < mtu < veth.IPV6_MTU_MIN and any(ip.address.version == 6 for ip in given.ips):
        raise CNIError(
            Code.INVALID_CONFIG,
            f'"mtu" is {mtu}, IPv6 needs {veth.IPV6_MTU_MIN} bytes (RFC 8200)',
        )
    return given


def delete(kind: Kind, req: Request, host: Host) -> None:
    """Detach: from the record of what ADD made, else from prevResult and what is found."""
    record = host.records.find(kind.plugin, req.network, req.attachment)
    if record and "stdin" in record.facts:
        dissolve(kind, req, host, record)
        return
    dissolve_unrecorded(kind, req, host)
    if record:  # an ADD died before it had written a line, or the file is damaged
        record.remove()


def dissolve(kind: Kind, req: Request, host: Host, record: Record) -> None:
    """Take apart what `record` names, then remove it; it stays when a step fails."""
    facts = record.facts
    with BestEffort() as steps:
        steps.attempt("interface", lambda: _delete_pair(req, host, facts))
        steps.attempt("masquerading", lambda: unmask(kind, req, host, facts))
        kind.dissolve(host, facts, steps)
        if facts.get("ipam"):
            steps.attempt("IPAM DEL", lambda: _release(req, host, facts))
    record.remove()


def as_delete(record: Record, path: str) -> Request:
    """Return the DEL that the runtime never sent for an attachment whose record is at hand.

    It has the recorded configuration, or the least where there is none, and the recorded CNI_PATH,
    or else `path`. Raises CNIError.
    """
    facts = record.facts
    environ = {
        "PATH": _PATH,
        "CNI_COMMAND": Command.DEL,
        "CNI_CONTAINERID": record.attachment.containerid,
        "CNI_IFNAME": record.attachment.ifname,
        "CNI_ARGS": facts.get("cni_args", ""),
        "CNI_PATH": facts.get("cni_path") or path,
    }
    least = {"cniVersion": CURRENT_VERSION, "name": facts.get("network"), "type": facts["plugin"]}
    return Request.parse(environ, facts.get("stdin", "").encode() or wire.encode_line(least))


def dissolve_unrecorded(kind: Kind, req: Request, host: Host) -> None:
    """Take apart an attachment without a record: one of the reference's, or one long gone."""
    addresses = _addresses_of_prev_result(req)
    with BestEffort() as steps:
        steps.attempt(
            "interface", lambda: addresses.update(_delete_unrecorded_pair(kind, req, host))
        )
        steps.attempt(
            "masquerading", lambda: masquerade.remove(host.netns, kind.owner(req), addresses)
        )
        steps.attempt(
            "masquerading of the reference",
            lambda: masquerade.remove_of_reference(host.netns, kind.owner(req), addresses),
        )
        kind.dissolve_unrecorded(req, host, steps)
        if ipam_type(req.config):
            steps.attempt(
                "IPAM DEL", lambda: host.delegate(ipam_type(req.config), req, Command.DEL)
            )


def mask(
    kind: Kind,
    req: Request,
    host: Host,
    addresses: list[Cidr],
    *,
    backend: str,
    record: Record,
) -> None:
    """Masquerade what `addresses` send to outside of their subnets; `unmask` takes it back."""
    record.note(masquerade=backend, addresses=[str(cidr) for cidr in addresses])
    masquerade.add(
        host.netns,
        kind.owner(req),
        addresses,
        backend=backend,
        holder_of=lambda text, address: liveness.holder_of(host, text, address, ours=req.netns),
    )


def unmask(kind: Kind, req: Request, host: Host, facts: Json) -> None:
    """Take back the masquerading that `facts` tell of, if any."""
    if not facts.get("masquerade"):
        return
    addresses = [ip_interface(text) for text in facts.get("addresses", ())]
    masquerade.remove(
        host.netns,
        kind.owner(req),
        [cidr.ip for cidr in addresses],
        backend=facts["masquerade"],
        subnets={cidr.network for cidr in addresses},
    )


def probe(host: Host, backend: str) -> None:
    """Raise CNIError 50 when no record could be written, or nothing masqueraded by `backend`."""
    host.records.probe()
    if backend:
        masquerade.probe(host.netns, backend)


def gc(kind: Kind, req: Request, host: Host) -> None:
    """Remove what belongs to no valid attachment of this network, then let IPAM do the same."""
    with BestEffort() as steps:
        liveness.collect(
            kind.plugin,
            req,
            host,
            steps,
            dissolve=lambda gone, record: dissolve(kind, gone, host, record),
        )
        if req.valid_attachments is not None:
            _collect_unrecorded(kind, req, host, steps, valid=req.valid_attachments)
        if ipam_type(req.config):
            steps.attempt("IPAM GC", lambda: host.delegate(ipam_type(req.config), req, Command.GC))


def _collect_unrecorded(
    kind: Kind, req: Request, host: Host, steps: BestEffort, *, valid: frozenset[Attachment]
) -> None:
    in_use = cache(liveness.addresses_in_use)

    def is_used(address: Address) -> bool:
        return address in in_use()

    def keep() -> frozenset[Attachment]:
        # To be asked for after a look at what there is: a record is there before all the rest.
        recorded = [f for f in host.records.survey(kind.plugin) if f.get("network") == req.network]
        return valid | {Attachment(f["containerid"], f["ifname"]) for f in recorded}

    def sweep() -> None:
        present = masquerade.owners(host.netns)
        kept = keep()
        for text, address in present:
            parts = text.split(" ")
            if parts[:2] != [kind.plugin, req.network] or len(parts) != 4:
                continue
            if Attachment(parts[2], parts[3]) not in kept and not is_used(address):
                masquerade.remove_element(host.netns, address, text)
                host.log(f"GC removes the masquerade element of {address}: no record of {text}")

    steps.attempt("masquerade elements", sweep)
    kind.collect(host, steps)
    steps.attempt(
        "masquerading of the reference",
        lambda: [
            host.log(f"GC removes {what}")
            for what in masquerade.gc_of_reference(host.netns, req.network, keep, is_used)
        ],
    )


def _refuse_living(req: Request, host: Host, record: Record) -> None:
    veth = record.facts.get("veth", "")
    link = host.netns.netlink.link(veth) if veth else None
    if link is not None and link.mac == record.facts.get("veth_mac"):
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - record.age()))
        raise CNIError(
            Code.INVALID_ENVIRONMENT,
            f"container {req.containerid} is attached to '{req.network}' as {req.ifname} since"
            f" {since}, in '{record.facts.get('netns')}'; DEL it first",
        )


def _delete_pair(req: Request, host: Host, facts: Json) -> None:
    if facts.get("veth") and veth.delete_veth(host.netns, facts["veth"], facts["veth_mac"]):
        return
    # Somebody may have renamed the host's end; the container's still has the MAC it was given.
    container = host.find_netns(req.netns)
    if container and facts.get("mac"):
        veth.delete_veth(container, req.ifname, facts["mac"])


def _delete_unrecorded_pair(kind: Kind, req: Request, host: Host) -> set[Address]:
    """Delete the container's interface if it leads to our bridge; return its addresses."""
    container = host.find_netns(req.netns)
    link = container.netlink.link(req.ifname) if container else None
    if container is None or link is None:
        return set()
    ours = veth.host_end(host.netns, container, link)
    if ours is None:
        return set()
    if not kind.is_in_network(req, host, ours):
        host.log(f"DEL leaves '{req.ifname}' alone: '{ours.name}' is not of this network")
        return set()
    for facts in host.records.survey(kind.plugin):
        claim = facts.get("veth"), facts.get("veth_mac"), facts.get("containerid", "")
        if claim[:2] == (ours.name, ours.mac) and claim[2]:
            # The path was that of a namespace which died, and by now is that of another.
            host.log(f"DEL leaves '{req.ifname}' alone: it is of container {claim[2]}")
            return set()
    addresses = {cidr.ip for cidr, _ in container.netlink.addresses(link.index)}
    delete_link(host.netns, ours.index)
    return {address for address in addresses if not address.is_link_local}


def _addresses_of_prev_result(req: Request) -> set[Address]:
    try:
        result = req.prev_result
    except CNIError:
        return set()  # a damaged cache must not keep a container from being deleted
    return {ip_address(ip.address.ip) for ip in result.ips} if result else set()


def _release(req: Request, host: Host, facts: Json) -> None:
    """Give the address back under the configuration that it was got by."""
    stdin = facts.get("stdin", "").encode() or req.stdin
    host.delegate(facts["ipam"], req, Command.DEL, stdin=stdin)
