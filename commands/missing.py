"""Objects that records of living containers name, and that do not exist."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError
from commands.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cni_common.node.host import Host
    from cni_common.spec.request import Attachment
    from commands.node import Known

    Owner = tuple[str, Attachment]  # network and attachment


@dataclass(frozen=True, slots=True)
class Missing:
    """One object; without a container it is one that attachments share."""

    kind: str
    what: str
    network: str
    containerid: str = ""
    ifname: str = ""
    pod: str = ""
    final: bool = False  # only a new ADD makes it

    @property
    def owner(self) -> str:
        """The attachment in words, or the network that shares the object."""
        if not self.containerid:
            return f"network {self.network}, shared"
        pod = f" ({self.pod})" if self.pod else ""
        return f"container {self.containerid}{pod}, {self.ifname} on network {self.network}"

    def json(self) -> dict[str, str]:
        """Return the object for --json."""
        return {
            "kind": self.kind,
            "what": self.what,
            "network": self.network,
            "containerid": self.containerid,
            "ifname": self.ifname,
            "pod": self.pod,
        }


def of(node: Node, host: Host, data_dir: str) -> list[Missing]:
    """Return what is missing, a shared object once.

    An ADD or DEL that is at work has not made all objects yet, or not removed its record. Therefore
    two looks count, between and after which the attachment's records are not locked.
    """
    found = lacking(node, host, data_dir)
    return list(dict.fromkeys(one for _, lost in found for one in lost))


def lacking(node: Node, host: Host, data_dir: str) -> list[tuple[Owner, list[Missing]]]:
    """Return the attachments of living containers that lack something by two looks, and what."""
    suspects = [owner for owner, _ in _lacking(node, node.attachments) if _is_quiet(node, owner)]
    if not suspects:
        return []
    again = Node(host, data_dir)
    return [pair for pair in _lacking(again, suspects) if _is_quiet(again, pair[0])]


def _lacking(node: Node, owners: Iterable[Owner]) -> Iterator[tuple[Owner, list[Missing]]]:
    """Yield those of the attachments of living containers that lack something, and what."""
    for owner in owners:
        records = node.attachments.get(owner, ())
        if not any(node.alive(one.facts) for one in records):
            continue
        try:
            lost = list(_lost(node, owner, records))
        except (CNIError, OSError, ValueError) as error:  # a record may say anything
            lost = []
            network, attachment = owner
            where = f"{attachment.containerid} {attachment.ifname} of network {network}"
            node.host.log(f"pycni audit: not all of {where} was looked at: {error}")
        if lost:
            yield owner, lost


def _lost(node: Node, owner: Owner, records: Sequence[Known]) -> Iterator[Missing]:
    network, attachment = owner
    names = network, attachment.containerid, attachment.ifname, node.pod_of(owner)
    for file in node.lost_leases(records):
        yield replace(Missing("lease", file, *names), final=True)
    for one in node.owned(records):
        if not one.present:
            whose = (network,) if one.shared else names
            yield replace(Missing(one.kind, one.what, *whose), final=one.final)


def _is_quiet(node: Node, owner: Owner) -> bool:
    """Tell whether no call is at work on an attachment: its records are there, and not locked."""
    for known in node.attachments.get(owner, ()):
        record = node.host.records.open(known.path)
        if record is None:
            return False
        record.close()
    return True
