"""The parts of a bandwidth attachment: its limits and its ifb."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.lifecycle import Lifecycle, Part
from cni_common.node.veth import host_end, random_mac
from cni_common.spec.errors import CNIError, Code
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
    from cni_common.node.lifecycle import Attaching, Unrecorded
    from cni_common.node.owned import Owned, Stray
    from cni_common.node.record import Record
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo


@dataclass(frozen=True, slots=True)
class LimitsFacts:
    """Limits at the host's end of the container's veth pair."""

    PART = "limits"
    host_end: str = ""  # name of the interface
    host_end_mac: str = ""
    host_end_index: int = 0
    ingress: bool = False  # whether there is a qdisc for what enters the container
    egress: bool = False  # whether what leaves it is redirected to the ifb

    def is_on(self, link: Link) -> bool:
        """Tell whether the limits are those of the veth `link`."""
        return (self.host_end_index, self.host_end_mac) == (link.index, link.mac)


class Limits(Part):
    """The qdisc for traffic into the container, and the redirection of traffic out of it."""

    facts = LimitsFacts

    def teardown(self, _req: Request, host: Host, record: Record, facts: LimitsFacts) -> None:
        """Remove qdisc and redirection from the interface, if it is still the same."""
        if not facts.ingress and not facts.egress:
            return
        link = host.netns.netlink.link_at(facts.host_end_index)
        if link is None or not facts.is_on(link):
            return
        channel = host.netns.netlink.channel
        entry = False
        if facts.egress:
            known = record.get(IfbFacts)
            block = host.netns.netlink.identify(known.device) if known else None
            found = tc.ingress(channel, link.index)
            entry = (
                found is not None
                and found.kind == "ingress"
                and ifb.redirections(host.netns, link) <= ({0, block[0]} if block else {0})
            )
        root = facts.ingress and is_shaper(tc.root(channel, link.index))
        _remove_from(host, link, root=root, entry=entry)

    def teardown_unrecorded(self, req: Request, host: Host, _found: Unrecorded) -> None:
        """Remove limits of the reference, or ours when the record is lost, with their ifbs."""
        _teardown_unrecorded(req, host)

    def restore(self, req: Request, host: Host, record: Record, facts: LimitsFacts) -> None:
        """Put back the limit, the ifb and the redirection, each where it is missing."""
        link = host.netns.netlink.link_at(facts.host_end_index)
        if link is None or not facts.is_on(link):
            return
        channel = host.netns.netlink.channel
        inward, outward = shapers(Conf.of(req), link.mtu)
        messages: list[Message] = []
        if facts.ingress and inward and not is_shaper(tc.root(channel, link.index)):
            messages += inward.messages(link.index, link.name)
        known = record.get(IfbFacts)
        if facts.egress and outward and known:
            messages += _lost_egress(host, link, known, outward)
        channel.exchange(messages)

    def present(self, host: Host, record: Record, facts: LimitsFacts) -> Iterator[Owned]:
        """Yield the limit, the ifb and the redirection."""
        from cni_common.node.owned import Owned

        link = None
        if facts.ingress or facts.egress:
            link = host.netns.netlink.link_at(facts.host_end_index)
            link = link if link and facts.is_on(link) else None
        if facts.ingress:
            there = link is not None and is_shaper(tc.root(host.netns.netlink.channel, link.index))
            yield Owned("limit", f"of traffic from '{facts.host_end}' to the container", there)
        block = record.get(IfbFacts)
        if block:
            found = host.netns.netlink.identify(block.device)
            mine = found is not None and found[1] == block.mac
            yield Owned("ifb", f"'{block.device}' ({block.mac})", mine)
            if mine and found and not is_shaper(tc.root(host.netns.netlink.channel, found[0])):
                what = f"of traffic from the container, on '{block.device}'"
                yield Owned("limit", what, present=False)
        if facts.egress:
            targets = ifb.redirections(host.netns, link) if link else set()
            what = f"from '{facts.host_end}' to '{block.device if block else ''}'"
            yield Owned("redirection", what, max(targets, default=0) > 0)

    def devices(self, facts: LimitsFacts) -> Iterator[str]:
        """Yield the host's end."""
        yield facts.host_end


@dataclass(frozen=True, slots=True)
class IfbFacts:
    """The intermediate functional block device that shapes egress traffic of the container."""

    PART = "ifb"
    device: str = ""
    mac: str = ""


class Ifb(Part):
    """The ifb."""

    facts = IfbFacts

    def teardown(self, _req: Request, host: Host, _record: Record, facts: IfbFacts) -> None:
        """Delete the ifb."""
        host.delete_link(host.netns, facts.device, facts.mac)

    def devices(self, facts: IfbFacts) -> Iterator[str]:
        """Yield the ifb."""
        yield facts.device

    def strays(self, host: Host) -> Iterator[Stray]:
        """Yield the ifbs to which nothing is redirected."""
        from cni_common.node.owned import Stray

        for link in ifb.orphans(host.netns):
            yield Stray(
                self.name,
                f"'{link.name}' ({link.mac})",
                (),
                owner=link.mac,
                addresses=frozenset(),
                reason="nothing is redirected to it, and no record names it",
                remove=partial(ifb.delete_idle, host, link.name, link.mac),
                idle=True,
            )

    def claims(self, record: Record) -> Iterator[str]:
        """Yield the MAC."""
        facts = record.get(IfbFacts)
        if facts:
            yield facts.mac


LIMITS, IFB = Limits(), Ifb()
LIFECYCLE = Lifecycle("bandwidth", LIMITS, IFB)


def add(req: Request, host: Host, conf: Conf, undo: Undo, *, result: Result) -> None:
    """Make the limits, and add the ifb to `result` if there is one. Raises CNIError."""
    ours = host_veth(req, host)
    facts = LimitsFacts(ours.name, ours.mac, ours.index)
    attaching = LIFECYCLE.begin(req, host, undo, facts)
    _clear_unowned(req, host, conf, ours)
    attaching.note(replace(facts, ingress=bool(conf.ingress), egress=bool(conf.egress)))
    attaching.take_back(IFB)
    attaching.take_back(LIMITS)
    messages: list[Message] = []
    inward, outward = shapers(conf, ours.mtu)
    if inward:
        _tell_raised(host, "ingressBurst", conf, inward)
        messages += inward.messages(ours.index, ours.name)
    if outward:
        _tell_raised(host, "egressBurst", conf, outward)
        block = _create_ifb(req, host, attaching, ours.mtu)
        result.interfaces.append(Interface(block.name, block.mac))
        messages += outward.messages(block.index, block.name)
        messages += ifb.redirect(ours, block)
    host.netns.netlink.channel.exchange(messages)


def shapers(conf: Conf, mtu: int) -> tuple[Shaper | None, Shaper | None]:
    """Return the shapers of ingress and egress traffic of the container."""
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


def _clear_unowned(req: Request, host: Host, conf: Conf, ours: Link) -> None:
    """Remove limits without an owner from a veth; the DEL of the reference leaves such limits.

    Raises CNIError when they are another attachment's, or when another program has a qdisc where
    one is needed.
    """
    channel = host.netns.netlink.channel
    root, entry = tc.root(channel, ours.index), tc.ingress(channel, ours.index)
    has_limit, has_redirection = is_shaper(root), _is_redirection(host, ours, entry)
    if conf.ingress and root and root.handle and not has_limit:
        raise _foreign(ours, f"qdisc {root.kind} at its root")
    if conf.egress and entry and not has_redirection:
        raise _foreign(ours, f"qdisc {entry.kind} on its ingress")
    if not has_limit and not has_redirection:
        return
    for record in _records_on(host, ours):
        if (record.network, record.attachment) != (req.network, req.attachment):
            raise CNIError(
                Code.INTERNAL,
                f"'{ours.name}' has the limits of container {record.attachment.containerid} on"
                f" '{record.network}'; DEL that first",
            )
    host.log(f"removes limits without an owner from '{ours.name}'")
    _remove_from(host, ours, root=has_limit, entry=has_redirection)


def _is_redirection(host: Host, ours: Link, entry: tc.Qdisc | None) -> bool:
    """Tell whether ingress traffic of the veth goes to an ifb of this plugin, existing or gone."""
    if entry is None or entry.kind != "ingress":
        return False
    for index in ifb.redirections(host.netns, ours):
        target = host.netns.netlink.link_at(index) if index > 0 else None
        if index == tc.NOWHERE or (target and not ifb.is_ours(target)):
            return False
    return True


def _create_ifb(req: Request, host: Host, attaching: Attaching, mtu: int) -> Link:
    """Create the ifb under the first name that is free or belongs to an unused ifb."""
    for name in ifb.names_of(req):
        mac = random_mac()
        attaching.note(IfbFacts(name, mac))
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


def _lost_egress(host: Host, ours: Link, known: IfbFacts, outward: Shaper) -> list[Message]:
    """Make the ifb if it is gone; return what puts shaper and redirection back. Raises OSError."""
    block = host.netns.netlink.link(known.device)
    if block is None:
        block = ifb.create(host.netns, known.device, known.mac, ours.mtu)
    if block is None or block.mac != known.mac:
        return []
    channel = host.netns.netlink.channel
    is_shaped = is_shaper(tc.root(channel, block.index))
    messages = [] if is_shaped else outward.messages(block.index, block.name)
    if block.index in ifb.redirections(host.netns, ours):
        return messages
    if tc.ingress(channel, ours.index):  # leads to the ifb that is gone
        _remove_from(host, ours, root=False, entry=True)
    return [*messages, *ifb.redirect(ours, block)]


def _remove_stale(host: Host, name: str) -> bool:
    """Delete an ifb that neither a record nor a redirection knows; False if one does."""
    found = host.netns.netlink.link(name)
    if found is None:
        return True
    if not ifb.is_ours(found) or _is_claimed(host, found) or ifb.users(host.netns, found):
        return False
    host.log(f"'{name}', which an interrupted ADD has left, is removed")
    host.delete_link(host.netns, name, found.mac)
    return True


def _teardown_unrecorded(req: Request, host: Host) -> None:
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
            steps.attempt(f"limits of '{link.name}'", partial(_clear, host, link, blocks))
        for block in blocks:
            steps.attempt(
                f"ifb '{block.name}'",
                partial(host.delete_link, host.netns, block.name, block.mac),
            )


def _clear(host: Host, link: Link, blocks: list[Link]) -> None:
    """Remove the limits of a veth, of which there is no record."""
    if any(_records_on(host, link)):
        return
    channel = host.netns.netlink.channel
    targets = ifb.redirections(host.netns, link)
    _remove_from(
        host,
        link,
        root=is_shaper(tc.root(channel, link.index)),
        entry=bool(targets) and targets <= {0, *(block.index for block in blocks)},
    )


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


def _records_on(host: Host, link: Link) -> Iterator[Record]:
    """Yield the records of limits of the veth `link`."""
    for record in host.records.of_plugin(LIFECYCLE.plugin):
        facts = record.get(LimitsFacts)
        if facts and facts.is_on(link):
            yield record


def _is_claimed(host: Host, block: Link) -> bool:
    records = host.records.of_plugin(LIFECYCLE.plugin)
    return any(record.get(IfbFacts) == IfbFacts(block.name, block.mac) for record in records)


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
