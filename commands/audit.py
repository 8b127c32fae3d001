"""`pycni audit`: objects without a living container, and objects that living containers lack."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from cni_common.node.liveness import GRACE_SECONDS
from commands import DONE, FOUND, LACKING, grouped, leftovers, missing, view
from commands.grouped import LATER, NEVER, NOW
from commands.node import Known, Node

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Part
    from cni_common.node.owned import Stray
    from cni_common.spec.names import Address
    from cni_common.spec.request import Attachment
    from commands.first_seen import FirstSeen
    from commands.missing import Missing
    from commands.node import Tenancy

_ANEW = "'pycni repair' may write it anew"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that belongs to no living container."""

    kind: str
    what: str
    network: str
    containerid: str
    ifname: str
    reason: str
    reclaim: str  # by the command: now, later (by a second call after the grace time), no
    key: str = ""  # what `act` is about: several findings can go by one act
    act: Callable[[], object] | None = None  # looks again before it removes anything

    def json(self) -> dict[str, object]:
        """Return the finding for --json."""
        return {
            "kind": self.kind,
            "what": self.what,
            "network": self.network,
            "containerid": self.containerid,
            "ifname": self.ifname,
            "reason": self.reason,
            "reclaim": self.reclaim,
        }


def run(options: Namespace, host: Host) -> int:
    """Print findings and missing objects; LACKING if there are any of these, else FOUND or DONE."""
    from commands.first_seen import FirstSeen

    audit = Audit(host, options.data_dir, FirstSeen(host.state_dir))
    findings = audit.findings()
    lacking = missing.of(audit.node, host, options.data_dir)
    if options.json:
        found = {"findings": [one.json() for one in findings]}
        view.write_json({**found, "missing": [one.json() for one in lacking]})
    else:
        _print(findings, lacking)
    return LACKING if lacking else FOUND if findings else DONE


def _print(findings: Sequence[Finding], lacking: Sequence[Missing]) -> None:
    if not findings and not lacking:
        view.write_line("nothing: everything belongs to a living container")
        return
    sentences = [grouped.of_findings(findings)] if findings else []
    sentences += [grouped.of_missing(lacking)] if lacking else []
    for sentence in sentences:
        view.write_text(sentence)
    if findings:
        view.write_line()
        grouped.write_findings(findings)
    if lacking:
        view.write_line()
        view.write_text("missing:", style="bold")
        view.write_line()
        grouped.write_missing(lacking)


class Audit:
    """One look at the node.

    The kernel is read first, then the records, then the living namespaces: an object that an ADD
    makes meanwhile has a record by then.
    """

    def __init__(self, host: Host, data_dir: str, first_seen: FirstSeen) -> None:
        self._host = host
        self.node = Node(host, data_dir)
        self._first_seen = first_seen

    def findings(self) -> list[Finding]:
        """Return everything that was found, each once."""
        strays = [(part, list(part.strays(self._host))) for part in self.node.parts]
        return [
            *self._attachments(),
            *self._leases(),
            *self._strays(strays),
            *self._files(),
        ]

    # --- objects with a record ---

    def _attachments(self) -> Iterator[Finding]:
        for known in self.node.records:
            if known.record.damage or known.record.is_unbegun():
                yield from self._unreadable(known)
                continue
            reason, when = self._when(known)
            if not reason:
                continue
            lifecycle = self.node.lifecycles.get(known.plugin)
            if lifecycle is None:
                yield self._of(known, "record", known.path, reason, NEVER, None)
                continue
            if lifecycle.leases and (known.network, known.attachment) in self._lessees:
                continue  # shown by its leases
            act = partial(leftovers.teardown, self._host, known.path)
            yield self._of(known, "record", known.path, reason, when, act)
            for one in lifecycle.present(self._host, known.record):
                if one.present and not one.shared:
                    yield self._of(known, one.kind, one.what, reason, when, act)

    def _unreadable(self, known: Known) -> Iterator[Finding]:
        """Yield a record that says nothing, or not all: its objects are unknown and stay."""
        damage = known.record.damage
        if damage:
            rest = "nothing is done about it, its DEL removes it"
            if self.node.may_live(known):
                rest = f"{_ANEW}, its DEL removes it"
            reason = f"damaged, {damage}; {rest}"
            yield self._of(known, "record", known.path, reason, NEVER, None)
        elif not known.is_young() and self.node.may_live(known):
            reason = f"it says nothing although its container may live; {_ANEW}, its DEL removes it"
            yield self._of(known, "record", known.path, reason, NEVER, None)
        elif not known.is_young():
            act = partial(leftovers.remove_empty_record, self._host, known.path)
            reason = "a call that was killed left it empty"
            yield self._of(known, "record", known.path, reason, NOW, act)

    def _when(self, known: Known) -> tuple[str, str]:
        """Return why the owner of a record is GONE, and when that can be torn down."""
        # Not locked: an ADD or DEL that meets the lock would wait, or be refused.
        reason = self.node.absence.reason(known.record)
        ripe = self.node.patient_absence.reason(known.record) and not known.is_young()
        return reason, NOW if ripe else LATER

    @cached_property
    def _lessees(self) -> frozenset[tuple[str, Attachment]]:
        return frozenset((one.network, one.owner) for one in self.node.tenancies)

    # --- leases ---

    def _leases(self) -> Iterator[Finding]:
        for one in self.node.tenancies:
            reason, when = self._when_of_lease(one)
            if not reason:
                continue
            act = (
                None
                if when == NEVER
                else partial(one.leases.reclaim, self._host, one.network, one.directory)
            )
            yield Finding(
                "lease",
                one.file,
                one.network,
                one.owner.containerid,
                one.owner.ifname,
                reason,
                when,
                f"lease {one.directory}",
                act,
            )

    def _when_of_lease(self, one: Tenancy) -> tuple[str, str]:
        if one.held.reason:
            return one.held.reason, NOW
        if one.alive is True:
            return "", ""
        if one.alive is False:
            # Without a record of the IPAM plugin's it goes with the attachment it belongs to.
            return f"its network namespace '{one.netns}' is gone", LATER
        if one.held.is_young or one.held.address in self.node.in_use:
            return "", ""
        if one.netns:
            why = f"it cannot be told whether '{one.netns}' lives, and no namespace has its address"
            return f"{why}; DEL frees it", NEVER
        why = "no record tells its namespace, and no namespace has its address"
        return f"{why}; GC by the runtime, or DEL, frees it", NEVER

    # --- objects without a record ---

    def _strays(self, strays: Iterable[tuple[Part, Iterable[Stray]]]) -> Iterator[Finding]:
        for part, found in strays:
            claimed = self.node.claimed(part)
            for one in found:
                if one.owner not in claimed and not one.addresses & self.node.in_use:
                    yield self._of_other(part, one) if one.remove_from else self._stray(part, one)

    def _stray(self, part: Part, one: Stray) -> Finding:
        # Without an address, nothing shows that the object is unused.
        known_gone = one.addresses or one.idle
        act = partial(leftovers.remove_stray, self._host, part, one) if known_gone else None
        reason = one.reason
        if self.node.may_claim(part):
            act, reason = None, f"{reason}; but a damaged record may have named it"
        never = "" if act else NEVER
        return self._finding(one.kind, one.what, one.names, reason=reason, act=act, reclaim=never)

    def _of_other(self, part: Part, one: Stray) -> Finding:
        """Return a finding of another implementation's."""
        names = one.names_by(self._networks) if one.names_by else one.names
        owner = names[0], names[1] if len(names) > 1 else ""
        leased = owner in self._leased or one.addresses & self._leased_addresses
        if leased or not names[0]:
            why = "it still has a lease" if leased else "its network is unknown here"
            reason = f"{one.reason}; {why}"
            return self._finding(one.kind, one.what, names, reason=reason, reclaim=NEVER)
        act = partial(leftovers.remove_stray, self._host, part, one, names[0])
        return self._finding(one.kind, one.what, names, reason=one.reason, act=act)

    @cached_property
    def _networks(self) -> frozenset[str]:
        listed = (name for name, _ in self.node.directories())
        return frozenset([*listed, *(one.network for one in self.node.records)])

    @cached_property
    def _leased(self) -> frozenset[tuple[str, str]]:
        return frozenset((network, owner.containerid) for network, owner in self._lessees)

    @cached_property
    def _leased_addresses(self) -> frozenset[Address]:
        return frozenset(one.held.address for one in self.node.tenancies)

    def _files(self) -> Iterator[Finding]:
        for path, act in leftovers.temporary_files(self._host, self.node):
            yield self._finding(
                "file",
                path,
                reason=f"a call that was killed more than {GRACE_SECONDS} s ago left it",
                key=path,
                act=act,
                reclaim=NOW,
            )

    # --- findings ---

    def _of(  # noqa: PLR0917 - the parts of a finding
        self,
        known: Known,
        kind: str,
        what: str,
        reason: str,
        when: str,
        act: Callable[[], object] | None,
    ) -> Finding:
        owner = known.attachment
        return Finding(
            kind,
            what,
            known.network,
            owner.containerid,
            owner.ifname,
            reason,
            when,
            known.path,
            act,
        )

    def _finding(  # noqa: PLR0913 - likewise
        self,
        kind: str,
        what: str,
        names: list[str] | tuple[str, ...] = (),
        *,
        reason: str,
        key: str = "",
        act: Callable[[], object] | None = None,
        reclaim: str = "",
    ) -> Finding:
        """Return a finding without a record: `first_seen` knows whether it was seen before."""
        network, containerid, ifname = (*names, "", "", "")[:3]
        key = key or f"{kind} {what}"
        when = reclaim or (NOW if self._first_seen.is_second(key) else LATER)
        return Finding(kind, what, network, containerid, ifname, reason, when, key, act)
