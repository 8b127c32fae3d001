"""Whether a recorded attachment still lives, and GC of those that do not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from cni_common.kernel import netns
from cni_common.node.masquerade import Owner
from cni_common.spec.request import Attachment, Command

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_common.node.host import Host
    from cni_common.node.record import Record, Records
    from cni_common.spec.request import Request
    from cni_common.spec.undo import BestEffort
    from cni_common.spec.wire import Json

GRACE_SECONDS = 60  # GC leaves younger attachments alone: their ADD may not have returned yet


def collect(
    plugin: str,
    req: Request,
    host: Host,
    steps: BestEffort,
    *,
    dissolve: Callable[[Request, Record], object],
) -> None:
    """Have every recorded attachment of this network dissolved that the runtime does not name.

    `dissolve` gets the DEL that the runtime did not send, and the record. Left alone are those that
    are young, are being worked on, or whose namespace lives: another runtime may know them.
    Without a list only those are taken that are known to be dead.
    """
    valid = req.valid_attachments
    living = cache(netns.reachable_namespaces)
    for path in host.records.paths(plugin, req.network):
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
        steps.attempt(f"{whose.containerid} {whose.ifname}", lambda: dissolve(gone, record))  # noqa: B023 - called at once


def lives(facts: Json, living: Callable[[], dict[str, str]]) -> bool | None:
    """Tell whether the recorded namespace exists, if any; None when nobody can tell."""
    wanted = facts.get("netns_id")
    return bool(wanted) and netns.lives(facts.get("netns", ""), str(wanted), living)


def is_alive(records: Records, owner_text: str) -> bool:
    """Tell whether the attachment that an nftables element names still has its namespace."""
    plugin = owner_text.partition(" ")[0]
    for facts in records.survey(plugin):
        if owner_of(plugin, facts) == owner_text:
            return lives(facts, netns.reachable_namespaces) is True
    return False


def owner_of(plugin: str, facts: Json) -> str:
    """Return the recorded attachment as the comments of its elements name it."""
    whose = Attachment(facts.get("containerid", ""), facts.get("ifname", ""))
    return str(Owner(plugin, facts.get("network", ""), whose))


def _reason_to_keep(
    record: Record,
    valid: frozenset[Attachment] | None,
    living: Callable[[], dict[str, str]],
) -> str:
    if valid is not None and record.attachment in valid:
        return "valid"
    if record.age() < GRACE_SECONDS:
        return f"younger than {GRACE_SECONDS} s"
    alive = lives(record.facts, living)
    if alive:
        return f"its namespace lives ('{record.facts.get('netns')}')"
    if alive is None and valid is None:
        return f"nobody can tell whether its namespace lives ('{record.facts.get('netns')}')"
    return ""


def _as_delete(req: Request, whose: Attachment) -> Request:
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
