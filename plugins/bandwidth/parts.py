"""The life of an attachment's limits: their record, how they are made and taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.node.veth import host_end, random_mac
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import Attachment
from cni_common.spec.result import Interface
from cni_common.spec.undo import BestEffort
from plugins.bandwidth import ifb, tc
from plugins.bandwidth.conf import Conf
from plugins.bandwidth.shaper import Bucket, Shaper, is_shaper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netlink import Message
    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo
    from cni_common.spec.wire import Json

PLUGIN = "bandwidth"


def add(req: Request, host: Host, conf: Conf, undo: Undo, *, result: Result) -> None:
    """Make the limits, and add the ifb to `result` if there is one. Raises CNIError."""
    ours = host_veth(req, host)
    record = _begin(req, host, ours, undo)
    _make_way(req, host, conf, ours)
    record.note(ingress=bool(conf.ingress), egress=bool(conf.egress))
    undo.push("limits", lambda: release(host, record.facts))
    messages: list[Message] = []
    inward, outward = shapers(conf, ours.mtu)
    if inward:
        _tell_raised(host, "ingressBurst", conf, inward)
        messages += inward.messages(ours.index, ours.name)
    if outward:
        _tell_raised(host, "egressBurst", conf, outward)
        block = _create_ifb(req, host, record, ours.mtu)
        result.interfaces.append(Interface(block.name, block.mac))
        messages += outward.messages(block.index, block.name)
        messages += ifb.redirect(ours, block)
    tc.send(host.netns.netlink.channel, messages)


def shapers(conf: Conf, mtu: int) -> tuple[Shaper | None, Shaper | None]:
    """Return what shapes what enters the container, and what leaves it."""
    shared = conf.subnets, conf.only_subnets
    return (
        Shaper(Bucket.of(conf.ingress, mtu), *shared, source=True) if conf.ingress else None,
        Shaper(Bucket.of(conf.egress, mtu), *shared, source=False) if conf.egress else None,
    )


def host_veth(req: Request, host: Host) -> Link:
    """Return the host's end of the container's interface. Raises CNIError."""
    container = host.open_netns(req.netns)
    link = container.netlink.link(req.ifname)
    if link is None:
        raise CNIError(Code.INTERNAL, f"interface '{req.ifname}' is missing in '{req.netns}'")
    ours = host_end(host.netns, container, link)
    if ours is None:
        raise CNIError(
            Code.INVALID_CONFIG,
            f"'{req.ifname}' is no veth whose other end is on the host, and only that can have a"
            " limit; put bandwidth behind a plugin such as bridge or ptp",
        )
    return ours


def delete(req: Request, host: Host) -> None:
    """Take the limits back: from the record of what ADD made, else what can be found."""
    record = host.records.find(PLUGIN, req.network, req.attachment)
    if record and "host_veth" in record.facts:
        dissolve(req, host, record)
        return
    _dissolve_unrecorded(req, host)
    if record:  # an ADD died before it had written a line, or the file is damaged
        record.remove()


def dissolve(_req: Request, host: Host, record: Record) -> None:
    """Take back what `record` names, then remove it; it stays when a step fails."""
    release(host, record.facts)
    record.remove()


def release(host: Host, facts: Json) -> None:
    """Take back the limits that `facts` tell of. Raises an ExceptionGroup."""
    with BestEffort() as steps:
        steps.attempt("limits", lambda: _release_veth(host, facts))
        if facts.get("ifb"):
            steps.attempt(
                "ifb", lambda: ifb.delete(host.netns, facts["ifb"], facts.get("ifb_mac", ""))
            )


def objects_of(host: Host, facts: Json) -> Iterator[tuple[str, str, bool]]:
    """Yield kind and name of what a record says was made, and whether it is there."""
    link = None
    if facts.get("ingress") or facts.get("egress"):
        link = host.netns.netlink.link_at(facts["host_veth_index"])
        link = link if link and _is_on(facts, link) else None
    name = facts.get("host_veth", "")
    channel = host.netns.netlink.channel
    if facts.get("ingress"):
        present = link is not None and is_shaper(tc.root(channel, link.index))
        yield "limit", f"of what '{name}' sends to the container", present
    if facts.get("ifb"):
        found = host.netns.netlink.identify(facts["ifb"])
        mine = found is not None and found[1] == facts.get("ifb_mac")
        yield "ifb", f"'{facts['ifb']}' ({facts.get('ifb_mac')})", mine
    if facts.get("egress"):
        targets = ifb.redirections(host.netns, link) if link else set()
        yield (
            "redirection",
            f"from '{name}' to '{facts.get('ifb', '')}'",
            max(targets, default=0) > 0,
        )


def collect(req: Request, host: Host, steps: BestEffort) -> None:
    """Take back the limits of every attachment of this network that the runtime does not name."""
    from cni_common.node.liveness import collect as collect_recorded

    collect_recorded(
        PLUGIN, req, host, steps, dissolve=lambda gone, record: dissolve(gone, host, record)
    )


def _begin(req: Request, host: Host, ours: Link, undo: Undo) -> Record:
    """Write the record; limits of an earlier ADD of the attachment are taken back first."""
    facts = {
        "netns": req.netns,
        "netns_id": host.open_netns(req.netns).identity,
        "host_veth": ours.name,
        "host_veth_index": ours.index,
        "host_veth_mac": ours.mac,
        "stdin": req.stdin.decode("utf-8", "replace"),
        "cni_args": req.environ.get("CNI_ARGS", ""),
        "cni_path": req.environ.get("CNI_PATH", ""),
    }
    record = host.records.begin_anew(
        PLUGIN, req.network, req.attachment, facts, clear=lambda old: dissolve(req, host, old)
    )
    # The last to go, and only when nothing is left that it could be needed for.
    undo.push("record", lambda: None if undo.failed else record.remove())
    return record


def _make_way(req: Request, host: Host, conf: Conf, ours: Link) -> None:
    """Remove the limits on a veth that nobody has any more, such as DEL of the reference leaves.

    Raises CNIError when they are another attachment's, or when another program has a qdisc where
    one is needed.
    """
    channel = host.netns.netlink.channel
    root, entry = tc.root(channel, ours.index), tc.ingress(channel, ours.index)
    has_limit, has_redirection = is_shaper(root), _is_redirection(host, ours, entry)
    if conf.ingress and root and root.handle and not has_limit:
        raise _foreign(ours, f"qdisc {root.kind} at its root")
    if conf.egress and entry and not has_redirection:
        raise _foreign(ours, f"qdisc {entry.kind} for what it receives")
    if not has_limit and not has_redirection:
        return
    for facts in host.records.survey(PLUGIN):
        whose = facts.get("network"), _attachment_of(facts)
        if _is_on(facts, ours) and whose != (req.network, req.attachment):
            raise CNIError(
                Code.INTERNAL,
                f"'{ours.name}' has the limits of container {whose[1].containerid} on"
                f" '{whose[0]}'; DEL that first",
            )
    host.log(f"limits that nobody has any more are removed from '{ours.name}'")
    _remove_from(host, ours, root=has_limit, entry=has_redirection)


def _is_redirection(host: Host, ours: Link, entry: tc.Qdisc | None) -> bool:
    """Tell whether what the veth receives goes to an ifb of this plugin's kind, if still there."""
    if entry is None or entry.kind != "ingress":
        return False
    for index in ifb.redirections(host.netns, ours):
        target = host.netns.netlink.link_at(index) if index > 0 else None
        if index == tc.NOWHERE or (target and not ifb.is_ours(target)):
            return False
    return True


def _create_ifb(req: Request, host: Host, record: Record, mtu: int) -> Link:
    """Create the ifb under the first name that is free, or that nobody needs any more."""
    for name in ifb.names_of(req):
        mac = random_mac()
        record.note(ifb=name, ifb_mac=mac)
        made = ifb.create(host.netns, name, mac, mtu)
        if made is None and _remove_stale(host, name):
            made = ifb.create(host.netns, name, mac, mtu)
        if made:
            return made
    raise CNIError(
        Code.INTERNAL,
        f"there are interfaces {' and '.join(map(repr, ifb.names_of(req)))} already, in use by"
        " others; delete them, or the attachments that they belong to",
    )


def _remove_stale(host: Host, name: str) -> bool:
    """Delete an ifb that neither a record nor a redirection knows; False if one does."""
    found = host.netns.netlink.link(name)
    if found is None:
        return True
    if not ifb.is_ours(found) or _is_claimed(host, found) or ifb.users(host.netns, found):
        return False
    host.log(f"'{name}', which an interrupted ADD has left, is removed")
    ifb.delete(host.netns, name, found.mac)
    return True


def _dissolve_unrecorded(req: Request, host: Host) -> None:
    """Take back limits without a record: the reference's, or ours when the record is lost."""
    veths: dict[int, Link] = {}
    blocks: list[Link] = []
    for name in ifb.names_of(req):
        # Nearly every DEL is of a container without limits: this look is the quick one.
        found = host.netns.netlink.link(name) if host.netns.netlink.identify(name) else None
        if found and ifb.is_ours(found) and not _is_claimed(host, found):
            blocks.append(found)
            veths |= {link.index: link for link in ifb.users(host.netns, found)}
    if _may_have_ingress(req):
        ours = _host_veth_or_none(req, host)
        if ours:
            veths[ours.index] = ours
    with BestEffort() as steps:
        for link in veths.values():
            steps.attempt(f"limits of '{link.name}'", lambda: _clear(host, link, blocks))  # noqa: B023 - called at once
        for block in blocks:
            steps.attempt(
                f"ifb '{block.name}'",
                lambda: ifb.delete(host.netns, block.name, block.mac),  # noqa: B023 - as above
            )


def _clear(host: Host, link: Link, blocks: list[Link]) -> None:
    """Remove the limits of a veth, of which there is no record."""
    if any(_is_on(facts, link) for facts in host.records.survey(PLUGIN)):
        return
    channel = host.netns.netlink.channel
    targets = ifb.redirections(host.netns, link)
    _remove_from(
        host,
        link,
        root=is_shaper(tc.root(channel, link.index)),
        entry=bool(targets) and targets <= {0, *(block.index for block in blocks)},
    )


def _release_veth(host: Host, facts: Json) -> None:
    if not facts.get("ingress") and not facts.get("egress"):
        return
    link = host.netns.netlink.link_at(facts["host_veth_index"])
    if link is None or not _is_on(facts, link):
        return
    channel = host.netns.netlink.channel
    entry = False
    if facts.get("egress"):
        block = host.netns.netlink.identify(facts["ifb"]) if facts.get("ifb") else None
        found = tc.ingress(channel, link.index)
        known = {0, block[0]} if block else {0}
        entry = (
            found is not None
            and found.kind == "ingress"
            and ifb.redirections(host.netns, link) <= known
        )
    root = bool(facts.get("ingress")) and is_shaper(tc.root(channel, link.index))
    _remove_from(host, link, root=root, entry=entry)


def _remove_from(host: Host, link: Link, *, root: bool, entry: bool) -> None:
    channel = host.netns.netlink.channel
    with BestEffort() as steps:
        if entry:
            steps.attempt(
                "redirection",
                lambda: tc.delete_qdisc(channel, link.index, tc.INGRESS, tc.INGRESS_HANDLE),
            )
        if root:
            steps.attempt("qdisc", lambda: tc.delete_qdisc(channel, link.index, tc.ROOT, tc.FIRST))


def _may_have_ingress(req: Request) -> bool:
    try:
        return Conf.of(req).ingress is not None
    except CNIError:
        return True  # DEL goes on with what it is given


def _host_veth_or_none(req: Request, host: Host) -> Link | None:
    if not req.netns:
        return None
    try:
        return host_veth(req, host)
    except CNIError as error:
        host.log(f"DEL goes on without the interface: {error.msg}")
        return None


def _attachment_of(facts: Json) -> Attachment:
    return Attachment(facts.get("containerid", ""), facts.get("ifname", ""))


def _is_on(facts: Json, link: Link) -> bool:
    """Tell whether a record is about limits of the veth `link`."""
    return (facts.get("host_veth_index"), facts.get("host_veth_mac")) == (link.index, link.mac)


def _is_claimed(host: Host, block: Link) -> bool:
    return any(
        (facts.get("ifb"), facts.get("ifb_mac")) == (block.name, block.mac)
        for facts in host.records.survey(PLUGIN)
    )


def _foreign(ours: Link, what: str) -> CNIError:
    return CNIError(
        Code.INTERNAL,
        f"'{ours.name}' has a {what} that another program made; remove it or the limits",
    )


def _tell_raised(host: Host, key: str, conf: Conf, shaper: Shaper) -> None:
    limit = conf.ingress if key.startswith("ingress") else conf.egress
    if limit and 0 < limit.burst < shaper.bucket.burst:
        host.log(
            f'"{key}" is less than one packet, which could never pass:'
            f" {shaper.bucket.burst * 8} bits are taken"
        )
