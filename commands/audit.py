"""`pycni audit`: what on this node belongs to no living container, and how it can go."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from cni_common.kernel import nft_layout
from cni_common.node import masquerade, masquerade_iptables
from cni_common.node.record import Record
from cni_common.spec.request import Attachment
from commands import DONE, FOUND, inventory, leftovers, view
from commands.node import Known, Node
from plugins.bridge import macfilter
from plugins.host_local import reclaim
from plugins.host_local.lease import GRACE_SECONDS
from plugins.host_local.lease import PLUGIN as HOST_LOCAL

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Iterator

    from cni_common.node.host import Host
    from cni_common.node.masquerade_iptables import Jump
    from cni_common.spec.names import Address
    from commands.first_seen import Sightings
    from commands.node import Tenancy
    from commands.owned import Stray

NOW, LATER, NEVER = "now", "later", "no"
COLUMNS = ("kind", "what", "network", "container", "interface", "reason", "reclaim")


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

    def row(self) -> list[str]:
        """Return the cells of a table."""
        return [
            self.kind,
            self.what,
            self.network,
            self.containerid,
            self.ifname,
            self.reason,
            self.reclaim,
        ]

    def json(self) -> dict[str, object]:
        """Return what programs get."""
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
    """Print the findings; FOUND when there are any."""
    from commands.first_seen import Sightings

    findings = Audit(host, options.data_dir, Sightings(host.state_dir)).findings()
    if options.json:
        view.write_json({"findings": [one.json() for one in findings]})
    else:
        title = "" if findings else "nothing: everything belongs to a living container"
        view.write_table(COLUMNS, [one.row() for one in findings], title=title)
    return FOUND if findings else DONE


class Audit:
    """One look at the node.

    What is in the kernel is read first, then the records, then what is alive: whatever an ADD
    makes meanwhile has a record by then.
    """

    def __init__(self, host: Host, data_dir: str, sightings: Sightings) -> None:
        self._host = host
        self._node = Node(host, data_dir)
        self._sightings = sightings

    def findings(self) -> list[Finding]:
        """Return everything that was found, each once."""
        elements = masquerade.owners(self._host.netns)
        jumps = list(masquerade_iptables.reference_jumps(self._host.netns))
        rules = masquerade_iptables.reference_rules(self._host.netns)
        ports = macfilter.orphans(self._host.netns)
        ports_of_reference = macfilter.orphans_of_reference(self._host.netns)
        strays = inventory.strays(self._host)
        return [
            *self._attachments(),
            *self._leases(),
            *self._elements(elements),
            *self._filters(ports, ports_of_reference),
            *self._strays(strays),
            *self._jumps(jumps),
            *self._rules(rules),
            *self._files(),
        ]

    # --- what has a record ---

    def _attachments(self) -> Iterator[Finding]:
        for known in self._node.records:
            if not known.facts:
                if not known.is_young():
                    act = partial(leftovers.remove_empty_record, self._host, known.path)
                    reason = "a call that was killed left it empty"
                    yield self._finding(
                        "record", known.path, reason=reason, key=known.path, act=act, reclaim=NOW
                    )
                continue
            reason, when = self._when(known)
            if not reason:
                continue
            if known.plugin == HOST_LOCAL:
                if (known.network, known.attachment) not in self._lessees:
                    act = partial(leftovers.remove_idle_record, self._host, known.path)
                    yield self._of(known, "record", known.path, reason, when, act)
            elif known.plugin in inventory.KINDS:
                act = partial(leftovers.dissolve, self._host, known.path)
                yield self._of(known, "record", known.path, reason, when, act)
                for one in inventory.objects_of(self._host, known):
                    if one.present:
                        yield self._of(known, one.kind, one.what, reason, when, act)
            else:
                yield self._of(known, "record", known.path, reason, NEVER, None)

    def _when(self, known: Known) -> tuple[str, str]:
        """Return why the owner of a record is GONE, and when that can be taken apart."""
        # Not locked: an ADD or DEL that meets the lock would wait, or be refused.
        record = Record(known.path, -1, known.facts)
        reason = self._node.expiry.of(known.attachment, record)
        ripe = self._node.patient_expiry.of(known.attachment, record) and not known.is_young()
        return reason, NOW if ripe else LATER

    @cached_property
    def _lessees(self) -> frozenset[tuple[str, Attachment]]:
        return frozenset((one.network, one.owner) for one in self._node.tenancies)

    # --- leases ---

    def _leases(self) -> Iterator[Finding]:
        for one in self._node.tenancies:
            reason, when = self._when_of_lease(one)
            if not reason:
                continue
            act = (
                None
                if when == NEVER
                else partial(reclaim.reclaim, self._host, one.network, one.directory)
            )
            yield Finding(
                "lease",
                f"{one.directory}/{one.lease.address}",
                one.network,
                one.owner.containerid,
                one.owner.ifname,
                reason,
                when,
                f"lease {one.directory}",
                act,
            )

    def _when_of_lease(self, one: Tenancy) -> tuple[str, str]:
        if one.reason:
            return one.reason, NOW
        if one.alive is True:
            return "", ""
        if one.alive is False:
            # Without a record of host-local's it goes with the attachment it belongs to.
            return f"its network namespace '{one.netns}' is gone", LATER
        if one.lease.is_young() or one.lease.address in self._node.in_use:
            return "", ""
        if one.netns:
            why = (
                f"it cannot be told whether '{one.netns}' lives, and its address is in no namespace"
            )
            return f"{why}; DEL frees it", NEVER
        why = "no record tells its namespace, and its address is in none"
        return f"{why}; GC by the runtime, or DEL, frees it", NEVER

    # --- what has none ---

    def _elements(self, elements: list[tuple[str, Address]]) -> Iterator[Finding]:
        recorded = {leftovers.owner_text(one) for one in self._node.records}
        for text, address in elements:
            if text in recorded or address in self._node.in_use:
                continue
            parts = text.split(" ") if text.count(" ") == 3 else ["", "", "", ""]
            yield self._finding(
                "masquerade",
                f"element {address} of {nft_layout.TABLE}, for '{text}'",
                parts[1:],
                reason="its owner has no record, and its address is in no namespace",
                act=partial(leftovers.remove_element, self._host, address, text),
            )

    def _filters(self, ports: list[str], of_reference: list[tuple[str, str]]) -> Iterator[Finding]:
        recorded = {one.facts.get("veth") for one in self._node.records}
        for port in ports:
            if port not in recorded:
                yield self._finding(
                    "mac-filter",
                    f"port '{port}' of {macfilter.TABLE}",
                    reason="the port is gone, and no record names it",
                    act=partial(leftovers.remove_filter, self._host, port),
                )
        for port, whose in of_reference:
            yield self._finding(
                "mac-filter",
                f"port '{port}' of table bridge nat, for '{whose}' (reference plugin)",
                reason="the port is gone",
                act=partial(leftovers.remove_filter_of_reference, self._host, port, whose),
            )

    def _strays(self, strays: list[Stray]) -> Iterator[Finding]:
        claimed = inventory.claimed(self._node.records)
        for one in strays:
            if one.owner not in claimed and not one.addresses & self._node.in_use:
                # Without an address nothing tells that nobody lives who needs it.
                known_gone = one.addresses or one.idle
                act = partial(leftovers.remove_stray, self._host, one) if known_gone else None
                never = "" if act else NEVER
                yield self._finding(
                    one.kind, one.what, one.names, reason=one.reason, act=act, reclaim=never
                )

    def _jumps(self, jumps: list[Jump]) -> Iterator[Finding]:
        recorded = {(one.network, one.attachment.containerid) for one in self._node.records}
        lessees = {(network, owner.containerid) for network, owner in self._lessees}
        for jump in jumps:
            whose = jump.network, jump.containerid
            # What has a record goes with it, and an address in use is of somebody who lives.
            if whose in recorded or jump.source in self._node.in_use:
                continue
            yield self._of_reference(
                "iptables",
                f"chain {jump.chain} for {jump.source}",
                whose,
                source=jump.source,
                leased=whose in lessees,
            )

    def _rules(self, rules: list[tuple[str, Address]]) -> Iterator[Finding]:
        networks = {name for name, _ in self._node.directories()}
        networks |= {one.network for one in self._node.records}
        leased = {one.lease.address for one in self._node.tenancies}
        for comment, source in rules:
            if source not in self._node.in_use:
                yield self._of_reference(
                    "nftables",
                    f"rule '{comment}' for {source}",
                    _names_in(comment, networks),
                    source=source,
                    leased=source in leased,
                )

    def _of_reference(
        self, kind: str, what: str, names: tuple[str, ...], *, source: Address, leased: bool
    ) -> Finding:
        reason = "masquerading of the reference's kind for an address that is in no namespace"
        if leased or not names[0]:
            why = "it still has a lease" if leased else "its network is unknown here"
            return self._finding(kind, what, names, reason=f"{reason}; {why}", reclaim=NEVER)
        act = partial(leftovers.remove_of_reference, self._host, self._node, names[0], source)
        return self._finding(kind, what, names, reason=reason, act=act)

    def _files(self) -> Iterator[Finding]:
        for path, act in leftovers.temporary_files(self._host, self._node):
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
        """Return a finding without a record: `sightings` know whether it was seen before."""
        network, containerid, ifname = (*names, "", "", "")[:3]
        key = key or f"{kind} {what}"
        when = reclaim or (NOW if self._sightings.is_second(key) else LATER)
        return Finding(kind, what, network, containerid, ifname, reason, when, key, act)


def _names_in(comment: str, networks: Iterable[str]) -> tuple[str, ...]:
    """Return network, container and interface of a rule's comment, as far as they are proven.

    It is "<digest>-<digest>, net: NETWORK, if: INTERFACE, id: CONTAINER", and may be cut short.
    """
    instance, *parts = comment.split(", ")
    given = dict(part.partition(": ")[::2] for part in parts)
    network, owner = given.get("net", ""), Attachment(given.get("id", ""), given.get("if", ""))
    if instance == masquerade_iptables.reference_instance(network, owner):
        return network, owner.containerid, owner.ifname
    is_of = partial(masquerade_iptables.is_of_network, instance)
    return (next(filter(is_of, networks), ""),)
