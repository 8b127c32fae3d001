"""The life of one attachment: its record, its address, and how it is taken apart."""

import time
from dataclasses import replace
from functools import cache
from ipaddress import ip_address, ip_interface

from cni_common import interface, masquerade
from cni_common.errors import CNIError, Code
from cni_common.netns import addresses_in_use, lives, reachable_namespaces
from cni_common.removal import delete_link
from cni_common.request import Attachment, Command, Request
from cni_common.steps import BestEffort
from plugins.bridge import macfilter
from plugins.bridge.conf import ipam_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_common.host import Host
    from cni_common.netns import NetNS
    from cni_common.record import Json, Record
    from cni_common.steps import Undo
    from cni_common.types import Address, Cidr, Result
    from plugins.bridge.conf import Conf

PLUGIN = "bridge"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # for delegates
GRACE_SECONDS = 60  # GC leaves younger attachments alone: their ADD may not have returned yet


def owner(req: "Request") -> masquerade.Owner:
    """Return the attachment as the owner of its masquerading."""
    return masquerade.Owner(PLUGIN, req.network, req.attachment)


def begin(req: "Request", host: "Host", conf: "Conf", undo: "Undo") -> "Record":
    """Write the record of an attachment that is about to be made.

    What an interrupted ADD of the same attachment has left is taken apart first; one that lives,
    in another namespace, is refused by CNIError 4.
    """
    facts = {
        "netns": req.netns,
        "netns_id": host.open_netns(req.netns).identity,
        "ipam": conf.ipam,
        "stdin": req.stdin.decode("utf-8", "replace"),
        "cni_args": req.environ.get("CNI_ARGS", ""),
        "cni_path": req.environ.get("CNI_PATH", ""),
        "masquerade": "",
        "mac_filter": "",
    }
    try:
        record = host.records.begin(PLUGIN, req.network, req.attachment, facts)
    except FileExistsError:
        old = host.records.find(PLUGIN, req.network, req.attachment, wait=False)
        if old:
            _refuse_living(req, host, old)
            host.log(f"taking apart what an interrupted ADD of {req.containerid} has left")
            dissolve(req, host, old)
        record = host.records.begin(PLUGIN, req.network, req.attachment, facts)
    # The last to go, and only when nothing is left that it could be needed for.
    undo.push("record", lambda: None if undo.failed else record.remove())
    return record


def allocate(req: "Request", host: "Host", type: str, undo: "Undo") -> "Result":  # noqa: A002
    """Return what the IPAM plugin gives, and have it taken back should the ADD fail."""

    def release() -> object:
        return host.delegate(type, req, Command.DEL)

    def take_back() -> None:
        undo.push("IPAM ADD", release)

    # SPEC.md section 4: a delegate whose ADD failed gets a DEL.
    given = host.delegate(type, req, Command.ADD, on_start=take_back)
    if host.is_ours(type, req.path):
        # Only now: ours takes back its own failures, and a refusal must not cost a living
        # container its address.
        take_back()
    if given is None:
        raise CNIError(Code.INTERNAL, f"IPAM plugin '{type}' returned no result")
    given.refuse_contradictions(f"IPAM plugin '{type}'")
    return given


def dissolve(req: "Request", host: "Host", record: "Record") -> None:
    """Take apart what `record` names, then remove it; it stays when a step fails."""
    facts = record.facts
    with BestEffort() as steps:
        steps.attempt("interface", lambda: _delete_pair(req, host, facts))
        if facts.get("masquerade"):
            steps.attempt("masquerading", lambda: unmasquerade(req, host, facts))
        if facts.get("mac_filter"):
            steps.attempt("MAC filter", lambda: filter_no_more(host, facts))
        if facts.get("ipam"):
            steps.attempt("IPAM DEL", lambda: _release(req, host, facts))
    record.remove()


def as_delete(record: "Record", path: str) -> "Request":
    """Return the DEL that the runtime never sent for an attachment whose record is at hand.

    It has the recorded configuration and CNI_PATH, or else `path`. Raises CNIError.
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
    return Request.parse(environ, facts.get("stdin", "").encode())


def dissolve_unrecorded(req: "Request", host: "Host") -> None:
    """Take apart an attachment without a record: one of the reference's, or one long gone."""
    addresses = _addresses_of_prev_result(req)
    with BestEffort() as steps:
        steps.attempt("interface", lambda: addresses.update(_delete_unrecorded_pair(req, host)))
        steps.attempt("masquerading", lambda: masquerade.remove(host.netns, owner(req), addresses))
        steps.attempt(
            "masquerading of the reference",
            lambda: masquerade.remove_of_reference(host.netns, owner(req), addresses),
        )
        steps.attempt(
            "MAC filter", lambda: macfilter.remove_of_reference(host.netns, req.attachment)
        )
        if ipam_type(req.config):
            steps.attempt(
                "IPAM DEL", lambda: host.delegate(ipam_type(req.config), req, Command.DEL)
            )


def unmasquerade(req: "Request", host: "Host", facts: "Json") -> None:
    """Take back the masquerading that `facts` tell of."""
    addresses = [ip_interface(text) for text in facts.get("addresses", ())]
    masquerade.remove(
        host.netns,
        owner(req),
        [cidr.ip for cidr in addresses],
        backend=facts["masquerade"],
        subnets={cidr.network for cidr in addresses},
    )


def filter_no_more(host: "Host", facts: "Json") -> None:
    """Take back the MAC filter that `facts` tell of."""
    macfilter.remove(host.netns, facts["veth"], facts["mac_filter"])


def is_alive(host: "Host", owner_text: str) -> bool:
    """Tell whether the attachment that a masquerade element names still has its namespace."""
    plugin = owner_text.partition(" ")[0]
    for facts in host.records.survey(plugin):
        whose = Attachment(facts.get("containerid", ""), facts.get("ifname", ""))
        if str(masquerade.Owner(plugin, facts.get("network", ""), whose)) == owner_text:
            return _lives(facts, reachable_namespaces) is True
    return False


def user_of_gateway(req: "Request", host: "Host", conf: "Conf", gateway: "Cidr") -> str:
    """Return another network that has living containers behind `gateway`, "" when none has."""
    living = cache(reachable_namespaces)
    for facts in host.records.survey(PLUGIN):
        if (
            facts.get("network") != req.network
            and facts.get("gateway_interface") == conf.gateway_interface
            and str(gateway) in facts.get("gateways", ())
            and _lives(facts, living) is not False
        ):
            return str(facts["network"])
    return ""


def collect(req: "Request", host: "Host", steps: "BestEffort") -> None:
    """Take apart every attachment of this network that the runtime does not name.

    Left alone are those that are young, are being worked on, or whose namespace lives: another
    runtime may know them. Without a list only those are taken that are known to be dead.
    """
    valid = req.valid_attachments
    living = cache(reachable_namespaces)
    for path in host.records.paths(PLUGIN, req.network):
        record = host.records.open(path)
        if record is None:
            continue
        whose = record.attachment
        reason = _reason_to_keep(record, valid, living)
        if reason:
            host.log(f"GC keeps {whose.containerid} {whose.ifname}: {reason}")
            record.close()
            continue
        host.log(f"GC removes {whose.containerid} {whose.ifname}: not valid, namespace gone")
        gone = _as_delete(req, whose)
        steps.attempt(f"{whose.containerid} {whose.ifname}", lambda: dissolve(gone, host, record))  # noqa: B023 - called at once
    if valid is not None:
        _collect_unrecorded(req, host, steps, valid)


def _collect_unrecorded(
    req: "Request", host: "Host", steps: "BestEffort", valid: frozenset[Attachment]
) -> None:
    in_use = cache(addresses_in_use)

    def is_used(address: "Address") -> bool:
        return address in in_use()

    def keep() -> "frozenset[Attachment]":
        # To be asked for after a look at what there is: a record is there before all the rest.
        recorded = [f for f in host.records.survey(PLUGIN) if f.get("network") == req.network]
        return valid | {Attachment(f["containerid"], f["ifname"]) for f in recorded}

    def sweep() -> None:
        present = masquerade.owners(host.netns)
        kept = keep()
        for text, address in present:
            parts = text.split(" ")
            if parts[:2] != [PLUGIN, req.network] or len(parts) != 4:
                continue
            if Attachment(parts[2], parts[3]) not in kept and not is_used(address):
                masquerade.remove_element(host.netns, address, text)
                host.log(f"GC removes the masquerade element of {address}: no record of {text}")

    steps.attempt("masquerade elements", sweep)
    steps.attempt(
        "MAC filters",
        lambda: [host.log(f"GC removes {what}") for what in macfilter.gc(host.netns)],
    )
    steps.attempt(
        "masquerading of the reference",
        lambda: [
            host.log(f"GC removes {what}")
            for what in masquerade.gc_of_reference(host.netns, req.network, keep, is_used)
        ],
    )


def _reason_to_keep(
    record: "Record",
    valid: "frozenset[Attachment] | None",
    living: "Callable[[], dict[str, str]]",
) -> str:
    if valid is not None and record.attachment in valid:
        return "valid"
    if record.age() < GRACE_SECONDS:
        return f"younger than {GRACE_SECONDS} s"
    alive = _lives(record.facts, living)
    if alive:
        return f"its namespace lives ('{record.facts.get('netns')}')"
    if alive is None and valid is None:
        return f"nobody can tell whether its namespace lives ('{record.facts.get('netns')}')"
    return ""


def _lives(facts: "Json", living: "Callable[[], dict[str, str]]") -> bool | None:
    """Tell whether the recorded namespace exists, if any; None when nobody can tell."""
    wanted = facts.get("netns_id")
    return bool(wanted) and lives(facts.get("netns", ""), str(wanted), living)


def _as_delete(req: "Request", whose: Attachment) -> "Request":
    """Return the DEL of `whose` that the runtime did not send."""
    environ = {
        **req.environ,
        "CNI_COMMAND": Command.DEL,
        "CNI_CONTAINERID": whose.containerid,
        "CNI_IFNAME": whose.ifname,
        "CNI_NETNS": "",
        "CNI_ARGS": "",
    }
    return replace(
        req,
        command=Command.DEL,
        containerid=whose.containerid,
        ifname=whose.ifname,
        netns="",
        environ=environ,
    )


def _refuse_living(req: "Request", host: "Host", record: "Record") -> None:
    veth = record.facts.get("veth", "")
    link = host.netns.netlink.link(veth) if veth else None
    if link is not None and link.mac == record.facts.get("veth_mac"):
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - record.age()))
        raise CNIError(
            Code.INVALID_ENVIRONMENT,
            f"container {req.containerid} is attached to '{req.network}' as {req.ifname} since"
            f" {since}, in '{record.facts.get('netns')}'; DEL it first",
        )


def _delete_pair(req: "Request", host: "Host", facts: "Json") -> None:
    if facts.get("veth") and interface.delete_veth(host.netns, facts["veth"], facts["veth_mac"]):
        return
    # Somebody may have renamed the host's end; the container's still has the MAC it was given.
    container = _netns_or_none(req, host)
    if container and facts.get("mac"):
        interface.delete_veth(container, req.ifname, facts["mac"])


def _delete_unrecorded_pair(req: "Request", host: "Host") -> "set[Address]":
    """Delete the container's interface if it leads to our bridge; return its addresses."""
    container = _netns_or_none(req, host)
    link = container.netlink.link(req.ifname) if container else None
    if container is None or link is None:
        return set()
    ours = interface.host_end(host.netns, container, link)
    if ours is None:
        return set()
    bridge = host.netns.netlink.link(req.config.get("bridge", "cni0"))
    if ours.master != (bridge.index if bridge else 0):
        host.log(f"DEL leaves '{req.ifname}' alone: '{ours.name}' is not in this network's bridge")
        return set()
    for facts in host.records.survey(PLUGIN):
        claim = facts.get("veth"), facts.get("veth_mac"), facts.get("containerid", "")
        if claim[:2] == (ours.name, ours.mac) and claim[2]:
            # The path was that of a namespace which died, and by now is that of another.
            host.log(f"DEL leaves '{req.ifname}' alone: it is of container {claim[2]}")
            return set()
    addresses = {cidr.ip for cidr, _ in container.netlink.addresses(link.index)}
    delete_link(host.netns, ours.index)
    return {address for address in addresses if not address.is_link_local}


def _netns_or_none(req: "Request", host: "Host") -> "NetNS | None":
    """Return the container's namespace; None when it is gone, or its path leads elsewhere."""
    if not req.netns:
        return None
    try:
        return host.open_netns(req.netns)
    except CNIError as error:
        host.log(f"DEL goes on without the namespace: {error.msg}")
        return None


def _addresses_of_prev_result(req: "Request") -> "set[Address]":
    try:
        result = req.prev_result
    except CNIError:
        return set()  # a damaged cache must not keep a container from being deleted
    return {ip_address(ip.address.ip) for ip in result.ips} if result else set()


def _release(req: "Request", host: "Host", facts: "Json") -> None:
    """Give the address back under the configuration that it was got by."""
    stdin = facts.get("stdin", "").encode() or req.stdin
    host.delegate(facts["ipam"], replace(req, stdin=stdin), Command.DEL)
